"""alignment/formats.py: files as spreadsheets and chat programs save them, and what is bare dialogue."""

import csv
import io
import re
from pathlib import Path

import pytest

from alignment.data import column_names
from alignment.errors import InputError
from alignment.formats import file_rows, is_plain_text, read_text

HELLO = "상담사: 안녕하세요, 고객님.\n고객: 네; 반가워요."
ROWS = [{"fname": "a", "dialogue": HELLO, "summary": "인사"}, {"fname": "b", "dialogue": "A: 응", "summary": "답"}]


def table(delimiter: str = ",", **options) -> str:
    """`ROWS` as a spreadsheet saves them."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter, **options)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


def file_of(folder: Path, content: str | bytes, name: str = "file.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        table(),
        table("\t"),
        table(";"),
        table("\t").encode("utf-16"),  # Excel's "Unicode text"
        table(quoting=csv.QUOTE_ALL).replace('","', '", "'),
        re.sub(r"(summary|인사|답)\r\n", r"\1,,\r\n", table()) + ",,,,\r\n" * 3,
        "," + table().replace("\r\nb", "\r\n1,b").replace("\r\na", "\r\n0,a"),  # pandas with its index
        table() + " \r\n",
        "\r\n" + table(";"),
    ],
    ids=[
        "commas", "tabs", "semicolons", "UTF-16", "blanks", "empty columns and rows", "unnamed index", "blank end",
        "blank beginning",
    ],
)  # fmt: skip
def test_spreadsheets_say_the_same_however_they_are_saved(content: str | bytes, tmp_path: Path):
    path = file_of(tmp_path, content)
    rows = [{name: row[name].replace("\r\n", "\n") for name in ROWS[0]} for row in file_rows(path)]
    assert rows == ROWS
    assert {*file_rows(path)[0]} == {*ROWS[0]}
    assert not is_plain_text(path, column_names(None))


def test_text_beside_the_named_columns_is_no_rest_to_be_dropped(tmp_path: Path):
    path = file_of(tmp_path, "id,dialogue,summary,\na,A: x,앞, 뒤\n")
    with pytest.raises(InputError, match=r"line 2: ' 뒤' in a column without a name; name it, or put text with commas"):
        file_rows(path)


def test_a_field_may_be_as_long_as_a_meeting(tmp_path: Path):
    turn = "A: 그건 다음에 이야기합시다.\n"
    (row,) = file_rows(file_of(tmp_path, f'id,dialogue\na,"{turn * 20_000}"\n'))
    assert row["dialogue"] == turn * 20_000


@pytest.mark.parametrize(
    ("start", "telling"),
    [
        ("PK,대화\na,안녕\n".encode("cp949"), "looks like CP949"),
        (b"PK\x03\x04\x14\x00\x06\xff", "Excel workbook or a zip: save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "Excel, Word or Hangul document: save it as CSV UTF-8, or as text"),
        (b"%PDF-1.7\n%\xb5\xed", "a PDF: save its text as UTF-8"),
        (b"PAR1\x15\x04\xff", "a Parquet file: save it as JSON lines"),
        (b"\x1f\x8b\x08\x00", "compressed: unpack it with gunzip"),
        ("fname,dialogue\na,안녕\n".encode("cp949"), "looks like CP949: save it as UTF-8 (iconv -f CP949 -t UTF-8"),
        (b"\x80\xff\xff", "byte 0; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_told_by_how_it_begins(start: bytes, telling: str, tmp_path: Path):
    path = file_of(tmp_path, start)
    with pytest.raises(InputError, match="not UTF-8 at byte") as told:
        read_text(path)
    assert str(told.value).startswith(str(path))
    assert telling in str(told.value)


@pytest.mark.parametrize(
    ("content", "plain"),
    [
        (HELLO, True),
        ("상담사： 네, 고객님\n고객： 네, 네\n", True),
        ("Agent: Please give me your name, id, and phone.\n", True),
        ("김 팀장(개발, 1팀): 안녕하세요.\n이 대리: 네.\n", True),
        ("홍길동, 김철수 님과 카카오톡 대화\n[홍길동] [오후 3:21] 안녕\n", True),
        ("[홍길동] [오후 3:21] 안녕, 철수야\n", True),
        ("10:30\tA\t안녕\n10:31\tB\t응\n", True),
        ("민수\t안녕\n지원\t응\n", True),
        ("네; 알겠습니다\n그래; 가자\n", True),
        ("네, 알겠습니다.", True),
        ("네, 알겠습니다.\n\n", True),
        ("대화,요약", False),
        ("\n\n대화,요약\n안녕,인사\n", False),
        ("[2024-05-03, 3:21:05 PM] A: hi\n[2024-05-03, 3:22:05 PM] B: hello\n", True),
        ("5/3/24, 15:21 - A: hi\n5/3/24, 15:22 - B: hello, you\n", True),
        ("본문,초록\n안녕,인사\n", False),  # which column is which is asked then
        ("본문,초록\nA: 안녕,인사\n", False),
        ("본문,초록\nA: 안녕,인사,끝\n응,답\n", False),
        ("통화 기록, 3월\n\nA: 안녕, 나야, 철수\nB: 응\n", True),
        ("필요,개요\n안녕,인사\n", False),
        ("- 여보세요, 분실 신고요.\n- 네, 고객님.\n", True),
        ("(고객) 여보세요, 신고?\n(상담원) 네, 고객님.\n", True),
        ("고객\t여보세요, 신고하려고요!\n상담원\t네, 고객님.\n", True),
        ("안녕하세요, 반갑습니다, 저는 김철수입니다\n네, 반갑습니다, 저는 홍길동입니다\n", True),
        ("오늘 회의는 세 시에, 역 앞\n내일은 네 시에, 집 앞\n", False),  # then it is asked
        ("No.,text,abstract\n1,A: x,y\n", False),
        ("순번,통화 내용 (전체 녹취 원문),요지\n1,A: x,y\n", False),
        ("대화\n고객: 여보세요\n상담원: 네\n", True),
        ("대화\n\n고객: 여보세요\n상담원: 네\n", True),
        ('대화\n"고객: 여보세요\n상담원: 네"\n', False),
        ("dialogue,what was said, in short.\n안녕,인사,x\n", False),
        ('번호,대화,요약\n1,"A: 안녕\nB: 응",인사\n2,A: 안녕, 반가워,인사\n', False),  # with a fault
        ('대화,요약\n"A: 안녕\nB: 응",인사\nA: 안녕, 반가워,인사\n', False),
        ("dialogue\n안녕.\n", False),
        ("dialogue\tsummary\n안녕.\t인사\n", False),
        ('상담번호\t상담내용\n1\t"고객: 안녕하세요\n상담원: 네"\n', False),
        ('상담번호;상담내용\n1;"고객: 안녕하세요\n상담원: 네"\n', False),
        ('{"id": "a", "dialogue": "A: 안녕"}\n', False),
    ],
)
def test_bare_dialogue_is_told_from_a_table(content: str, plain: bool, tmp_path: Path):
    assert is_plain_text(file_of(tmp_path, content), column_names(None)) is plain
    assert not is_plain_text(file_of(tmp_path, content, "FILE.CSV"), column_names(None))


def test_a_table_is_known_by_the_names_that_the_user_gives(tmp_path: Path):
    path = file_of(tmp_path, "본문\n안녕.\n")
    assert is_plain_text(path, column_names(None))
    assert not is_plain_text(path, column_names({"dialogue": "본문"}))


def test_the_delimiter_is_what_the_header_has_most_of(tmp_path: Path):
    path = file_of(tmp_path, "id\tdialogue\tsummary (ko, en)\n1\tA: 안녕, 응\t인사\n")
    assert file_rows(path) == [{"id": "1", "dialogue": "A: 안녕, 응", "summary (ko, en)": "인사"}]


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        ("id,dialogue\na,안녕\n\ufeffid, dialogue\nb,응\n", "line 3: the header comes again; delete that line"),
        ('{"id": ' + "9" * 5000 + "}", "JSON that cannot be read: Exceeds the limit"),
        ('{"a": ' * 50_000, "JSON that cannot be read"),
    ],
)
def test_a_fault_of_the_whole_file_is_told(content: str, telling: str, tmp_path: Path):
    with pytest.raises(InputError, match=re.escape(telling)):
        file_rows(file_of(tmp_path, content))


def test_a_table_of_nothing_has_no_columns(tmp_path: Path):
    assert file_rows(file_of(tmp_path, ",,\n,,\n")) == []


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"id": "a"}\n{"id": "b"}\n5\n', [{"id": "a"}, {"id": "b"}, 5]),
        ('{"data": [{"id": "a"}, {"id": "b"}]}', [{"id": "a"}, {"id": "b"}]),
    ],
)
def test_rows_of_json(content: str, rows: list, tmp_path: Path):
    assert file_rows(file_of(tmp_path, content)) == rows


def test_a_quote_after_a_blank_is_a_quote_where_the_header_has_blanks_too(tmp_path: Path):
    assert file_rows(file_of(tmp_path, 'id, dialogue\n1, "A: 안녕, 응"\n')) == [{"id": "1", "dialogue": "A: 안녕, 응"}]
    (row,) = file_rows(file_of(tmp_path, 'id,dialogue\n1, "안녕" 하고 말했다\n'))
    assert row["dialogue"] == ' "안녕" 하고 말했다'
