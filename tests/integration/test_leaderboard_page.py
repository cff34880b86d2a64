"""reward/leaderboard.html in a real browser: it draws without an error or a request, and what one clicks works."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from alignment.data import load_records
from alignment.records import Record
from reward.leaderboard import Board, leaderboard, page
from reward.runs import COSTS, Entry

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--enable-logging=stderr", "--v=0", "--window-size=1280,1000", "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH")

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
# Appended to the page: `step` names what is done and keeps what the page then shows.
PROLOGUE = """
const seen = {};
const all = selector => [...document.querySelectorAll(selector)];
const names = () => all("#board tbody tr").map(row => row.dataset.name);
const press = key => document.querySelector(`#by-${key} button`).click();
const set = (id, value, event) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(event));
};
const type = (id, text) => set(id, text, "input");
const choose = (id, value) => set(id, value, "change");
const pick = (id, name) => choose(id, all(`#${id} option`).find(one => one.text === name).value);
const sortOf = key => document.getElementById(`by-${key}`).getAttribute("aria-sort");
const texts = selector => all(selector).map(own => own.textContent);
const ids = () => all("#cases article").map(own => own.dataset.id);
const text = selector => document.querySelector(selector)?.textContent ?? null;
const wait = () => new Promise(done => setTimeout(done, 300));
"""
EPILOGUE = """
const result = document.createElement("pre");
result.id = "seen";
result.textContent = encodeURIComponent(JSON.stringify(seen));
document.body.append(result);
"""


def browse(file: Path) -> tuple[str, list[str]]:
    """The page's elements as they are after its scripts ran, and what those wrote to the console."""
    profile = file.parent / "profile"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def logs(kind: str) -> dict[str, Any]:
    lines: list[dict[str, float]] = [{"step": n, "eval_loss": 2 - n / 100} for n in range(0, 50, 10)]
    if kind == "ppo":
        lines = [{"step": n, "kl": n / 10, "reward": n / 20, "score": n / 20} for n in range(1, 9)]
    else:
        lines += [{"step": n, "loss": 3 - n / 100 + n % 3 / 10} for n in range(100)]
    return {"finished": True, "settings": {}, "seconds": 90, "log": lines}


@pytest.fixture(scope="module")
def board() -> Board:
    """Three systems on 30 Korean dialogues, one of which tries to break out of the page."""
    records = load_records("embedded-ko", split="eval", need_references=True)[0][:29]
    records.append(Record("hostile", f"#Person1#: {HOSTILE}", ("#Person1#은 화가 났습니다.",), "<b>주제</b>"))
    right = [record.references[0] for record in records]
    halves = [text[: len(text) // 2] for text in right]
    others = [*right[1:], right[0]]
    others[-1] = HOSTILE
    models = {"models": ["runs/x/phase2"], "combine": None, "decoding": {"num_beams": 4}, "postprocess": []}

    def entry(name: str, summaries: list[str], seconds: float | None, kind: str, system: dict | None = None) -> Entry:
        costs = dict.fromkeys(COSTS) | {"seconds": seconds, "parameters": 268_098_176}
        return Entry(name, Path("runs/dev"), summaries, costs, system, {f"runs/{kind}/model": logs(kind)})

    entries = [
        entry("halves", halves, 30, "sft", models),
        entry("others", others, None, "ppo"),
        entry("right <i>", right, 9, "sft"),
    ]
    return leaderboard(records, entries, ["aistages", "nikl"])


@pytest.fixture(scope="module")
def after(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], list[str]]]:
    """Runs steps in the open page; returns what they put into `seen`, and the lines of the console."""

    def run(steps: str) -> tuple[dict[str, Any], list[str]]:
        folder = tmp_path_factory.mktemp("page")
        script = f"<script type=module>{PROLOGUE}{steps}{EPILOGUE}</script>"
        (folder / "report.html").write_text(page(board).replace("</body>", f"{script}</body>"), "utf-8")
        elements, console = browse(folder / "report.html")
        assert 'id="seen">' in elements, console
        return json.loads(unquote(elements.split('id="seen">')[1].split("</pre>")[0])), console

    return run


TABLE = """
seen.first = {
  names: names(), lede: text("#lede"), sorted: all("#board th[aria-sort=ascending]").map(own => own.id),
  sections: all("main section:not([hidden])").length, charts: all("#curves figure").length, title: document.title,
  cells: all("#matrix tbody td").map(own => own.className), how: texts(".how summary"),
  resources: performance.getEntriesByType("resource").map(own => own.name),
};
press("seconds");
seen.bySeconds = {names: names(), sort: sortOf("seconds"), before: sortOf("rank")};
press("seconds");
seen.bySecondsDown = {names: names(), sort: sortOf("seconds")};
press("rouge1");
seen.byRouge1 = names();
press("name");
seen.byName = names();
press("rank");
document.querySelector("#board tr[data-name=halves] .how").open = true;
await wait();
press("name");
seen.opened = {open: all("#board .how[open]").length, text: text("#board tr[data-name=halves] .how dl")};
press("rank");
type("filter", "HALV");
seen.filtered = {
  names: names(), lengths: all("#lengths tbody tr").length, matrix: all("#matrix tbody tr").length,
  curves: all("#curves-legend li").length,
};
type("filter", "beams");
seen.byManner = names();
type("filter", "zzz");
seen.nothing = text("#board tbody");
type("filter", "");
seen.profiles = {before: texts("#board tbody td:nth-child(3)")};
document.querySelector("input[value=nikl]").click();
seen.profiles.after = texts("#board tbody td:nth-child(3)");
seen.profiles.lengths = texts("#by_length .cell");
seen.profiles.made = text("#made");
"""


@pytest.fixture(scope="module")
def table(after) -> tuple[dict[str, Any], list[str]]:
    return after(TABLE)


def test_the_page_draws_without_an_error_or_a_request(table):
    seen, console = table
    assert console == []
    assert seen["first"]["resources"] == []
    assert seen["first"]["title"] == "3 systems on 30 dialogues"
    assert seen["first"]["sections"] == 7


def test_an_error_would_be_seen(tmp_path):
    (tmp_path / "broken.html").write_text("<!doctype html><script>nothing.here</script>", "utf-8")
    _, console = browse(tmp_path / "broken.html")
    assert len(console) == 1
    assert "nothing is not defined" in console[0]


def test_the_table_begins_with_the_best_and_the_lede_names_it(table):
    first = table[0]["first"]
    assert first["names"] == ["right <i>", "halves", "others"]
    assert first["sorted"] == ["by-rank"]
    assert first["lede"].startswith("right <i> has the highest mean ROUGE")
    assert "ahead of every other by more than chance" in first["lede"]
    assert first["how"] == ["predictions file", "4 beams", "predictions file"]


def test_the_matrix_has_a_sign_for_every_pair(table):
    assert table[0]["first"]["cells"] == [
        "self muted", "up2", "up2", "down2", "self muted", "up2", "down2", "down2", "self muted",
    ]  # fmt: skip


def test_curves_and_reward_against_kl_are_drawn(table):
    # held-out and training loss, score, reward and KL by step, and reward by KL
    assert table[0]["first"]["charts"] == 6


def test_a_heading_sorts_and_sorts_back_with_what_is_unknown_last(table):
    seen = table[0]
    assert seen["bySeconds"] == {
        "names": ["right <i>", "halves", "others"], "sort": "ascending", "before": "none",
    }  # fmt: skip
    assert seen["bySecondsDown"] == {"names": ["halves", "right <i>", "others"], "sort": "descending"}
    assert seen["byRouge1"] == ["right <i>", "halves", "others"]
    assert seen["byName"] == ["halves", "others", "right <i>"]


def test_how_a_system_was_made_unfolds_and_stays_so_when_sorted(table):
    assert table[0]["opened"]["open"] == 1
    assert "modelsruns/x/phase2" in table[0]["opened"]["text"]
    assert "num_beams 4" in table[0]["opened"]["text"]


def test_the_filter_holds_in_all_sections(table):
    seen = table[0]
    assert seen["filtered"] == {"names": ["halves"], "lengths": 2, "matrix": 1, "curves": 1}  # lengths: references too
    assert seen["byManner"] == ["halves"]
    assert seen["nothing"] == "No system matches the filter."


def test_the_profile_switch_changes_the_figures(table, board):
    means = {
        profile: sorted((row["mean"] for row in own["scores"]), reverse=True)
        for profile, own in board.figures["profiles"].items()
    }
    profiles = table[0]["profiles"]
    assert [float(mean) for mean in profiles["before"]] == pytest.approx(means["aistages"], abs=0.006)
    assert [float(mean) for mean in profiles["after"]] == pytest.approx(means["nikl"], abs=0.006)
    assert len(profiles["lengths"]) == 3 * 4
    assert profiles["made"].startswith("Profile nikl, tokens by mecab-ko")


PAIRS = """
const scoresOf = side => texts(`.side.${side} .score`).map(Number);
const disabled = id => document.getElementById(id).disabled;
seen.first = {ids: ids().length, count: text("#count"), previous: disabled("previous"), next: disabled("next")};
document.getElementById("next").click();
seen.second = {ids: ids().length, count: text("#count"), previous: disabled("previous"), next: disabled("next")};
pick("a", "others");
pick("b", "right <i>");
seen.worst = {count: text("#count"), scores: scoresOf("a"), label: text(".side.a .label b")};
choose("order", "id");
seen.byId = ids().slice(0, 3);
choose("order", "behind");
seen.behind = texts(".case .gap");
choose("order", "highest");
seen.highest = scoresOf("a");

type("search", "DOCUMENT.title");
await wait();
seen.found = {
  ids: ids(), text: text(".side.a .text"), turns: all(".case .turns").length, images: all("img").length,
  topic: text(".case .topic"), bold: all(".case .topic b").length, title: document.title,
};
document.querySelector(".case details").open = true;
await wait();
seen.dialogue = {text: text(".case .turns"), who: texts(".case .turns .who")};
type("search", "없는 말입니다");
await wait();
seen.none = {ids: ids(), count: text("#count")};
type("search", "");
await wait();

choose("order", "id");
pick("a", "halves");
const first = ".case:first-child";
const marks = () => ({a: texts(`${first} .a mark`), b: texts(`${first} .b mark`)});
seen.marks = {...marks(), whole: text(`${first} .side.b .text`), half: text(`${first} .side.a .text`)};
choose("marks", "reference");
seen.againstReference = marks();
choose("marks", "none");
seen.unmarked = all(".case mark").length;
pick("b", "the reference alone");
seen.alone = {sides: all(`${first} .side`).length, gaps: all(".case .gap").length};
"""


@pytest.fixture(scope="module")
def pairs(after) -> dict[str, Any]:
    seen, console = after(PAIRS)
    assert console == []
    return seen


def test_cases_come_in_pages(pairs):
    assert pairs["first"] == {"ids": 20, "count": "1 to 20 of 30 dialogues", "previous": True, "next": False}
    assert pairs["second"] == {"ids": 10, "count": "21 to 30 of 30 dialogues", "previous": False, "next": True}


def test_another_pair_begins_with_its_worst_case(pairs):
    assert pairs["worst"]["count"] == "1 to 20 of 30 dialogues"
    assert pairs["worst"]["label"] == "others"
    scores = pairs["worst"]["scores"]
    assert scores == sorted(scores)
    assert scores[0] == 0  # the hostile one


def test_cases_are_ordered_by_id_difference_and_score(pairs):
    assert pairs["byId"] == ["eval_00", "eval_01", "eval_02"]
    gaps = [float(gap.removeprefix("A less B ").replace("\N{MINUS SIGN}", "-")) for gap in pairs["behind"]]
    assert gaps == sorted(gaps)
    assert gaps[0] < -50
    assert pairs["highest"] == sorted(pairs["highest"], reverse=True)


def test_the_search_finds_and_markup_in_texts_is_shown_as_text(pairs):
    found = pairs["found"]
    assert found["ids"] == ["hostile"]
    assert found["text"] == HOSTILE
    assert (found["topic"], found["bold"]) == ("<b>주제</b>", 0)
    assert (found["images"], found["title"]) == (0, "3 systems on 30 dialogues")
    assert pairs["none"] == {"ids": [], "count": "No dialogue holds that."}


def test_the_dialogue_is_drawn_when_it_is_opened(pairs):
    assert pairs["found"]["turns"] == 0
    assert pairs["dialogue"] == {"text": f"#Person1#: {HOSTILE}", "who": ["#Person1#"]}


def test_words_that_the_other_side_lacks_are_marked(pairs):
    whole, half, marks = pairs["marks"]["whole"], pairs["marks"]["half"], pairs["marks"]["b"]
    assert whole.startswith(half)
    assert whole.endswith(marks[-1])
    assert len(marks[-1]) >= len(whole) - len(half) - 1  # less a blank, and more where a word was cut
    assert len("".join(pairs["marks"]["a"])) <= len(half.split()[-1])  # a word that was cut, at most
    assert pairs["againstReference"]["b"] == []  # it is the reference
    assert pairs["unmarked"] == 0


def test_a_system_can_stand_beside_the_reference_alone(pairs):
    assert pairs["alone"] == {"sides": 2, "gaps": 0}
