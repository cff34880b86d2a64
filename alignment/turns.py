"""Whether dialogues have one turn a line: what has several on one, or is as messengers export it, is refused."""

import re

from alignment.errors import InputError

# A speaker's name before its colon, where a turn may begin; 10:30 and https:// are none.
_NAME = re.compile(r"(?:^|(?<=[\s/|>;.!?]))([^\s\d:：/|>;.!?][^\s:：/|>;.!?]{0,14})[:：](?!\d|//)")
_NO_BREAK = re.compile(r"\\n|(<|&lt;)br ?/?(>|&gt;)|#\w+#\s*[:：].*#\w+#\s*[:：]", re.IGNORECASE)
KAKAOTALK = re.compile(r".*카카오톡 대화\n저장한 날짜|KakaoTalk Chats? with ")
# [name] [time] text; date time, name : text; [date, time] name: text; date, time - name: text; time, tab, name.
_MESSAGE = re.compile(
    r"\[[^\]]{1,40}\] \[[^\]]*\d:\d\d[^\]]*\]|[^:]{4,30}\d:\d\d(:\d\d)?( [AP]M)?, [^:]{1,40} : "
    r"|\[?\d{1,4}[./-] ?\d{1,2}[./-] ?\d{1,4}[^:]{0,12}\d:\d\d[^:\n]*(:\d\d[^:\n]*)?(\]| -) [^:]{1,40}: "
    r"|\d{1,2}:\d\d\t[^\t]{1,40}\t"
)


def check_turns(source: str, dialogues: list[str]) -> None:
    """Refuses what is read from `source` where most of its dialogues have several turns on a line, or times in them."""
    unbroken = sum(map(_is_unbroken, dialogues))
    if unbroken * 2 > len(dialogues):
        raise InputError(
            f"{source}: {unbroken} of {len(dialogues)} dialogues have several turns on a line, with \\n, <br> or "
            "nothing between. Put line breaks there: a dialogue has one turn a line."
        )
    exported = sum(map(_is_exported, dialogues))
    if exported * 2 > len(dialogues):
        raise InputError(
            f"{source}: {exported} of {len(dialogues)} dialogues are as messengers export them, with dates and times "
            "among the turns. Write their messages as `이름: 말`, one a line."
        )


def _is_unbroken(dialogue: str) -> bool:
    if "\n" in dialogue:
        return False
    names = [match.group(1) for match in _NAME.finditer(dialogue)]
    begins = bool(re.match(r"\S+[:：]", dialogue))  # Mr.Kim: or <b>A: too
    several = begins and len(set(names)) > 1 and names[0] in names[1:]  # who speaks again speaks in a dialogue
    return several or bool(_NO_BREAK.search(dialogue))


def _is_exported(dialogue: str) -> bool:
    lines = dialogue.split("\n")
    return bool(KAKAOTALK.match(dialogue)) or sum(bool(_MESSAGE.match(line)) for line in lines) * 2 > len(lines)
