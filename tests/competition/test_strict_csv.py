import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dojo_kernel.competition import strict_csv
from dojo_kernel.competition.strict_csv import Wanted, plain_columns, read, read_exactly
from dojo_kernel.errors import SubmissionError

IDS = {"007": 0, "NA": 1, "null": 2}
FLOATS = Wanted("id", {"y": "float"}, IDS)
GOOD = b"id,y\n007,1\nNA,2\nnull,3\n"

GOLDEN = {
    "plain": (GOOD, [1, 2, 3]),
    "bom": (b"\xef\xbb\xbf" + GOOD, [1, 2, 3]),
    "crlf": (GOOD.replace(b"\n", b"\r\n"), [1, 2, 3]),
    "cr": (GOOD.replace(b"\n", b"\r"), [1, 2, 3]),
    "no last newline": (GOOD[:-1], [1, 2, 3]),
    "blank lines": (b"\n" + GOOD.replace(b"\n", b"\n\n"), [1, 2, 3]),
    "rows in another order": (b"id,y\nnull,3\nNA,2\n007,1\n", [1, 2, 3]),
    "columns in another order": (b"y,id\n1,007\n2,NA\n3,null\n", [1, 2, 3]),
    "quotes": (b'"id","y"\n"007","1"\nNA,2\nnull,3\n', [1, 2, 3]),
    "signs, exponents, spaces": (b"id,y\n007, +1e0 \nNA,-.2E1\nnull,3.\n", [1, -2, 3]),
    "empty": (b"", "empty"),
    "only a bom and blanks": (b"\xef\xbb\xbf \n\n", "empty"),
    "an extra field shifts no columns": (b"id,y\n007,1,9\nNA,2,9\nnull,3,9\n", "ragged"),
    "ragged that sums up": (b"id,y\n007,1,NA\n2\nnull,3\n", "ragged"),
    "id without zeros": (GOOD.replace(b"007", b"7"), "unknown_id"),
    "id with a space": (GOOD.replace(b"007", b" 007"), "unknown_id"),
    "duplicate id": (GOOD.replace(b"null", b"NA"), "duplicate_id"),
    "missing id": (GOOD.replace(b"null,3\n", b""), "missing_ids"),
    "duplicate column": (GOOD.replace(b"id,y", b"id,y,y"), "header"),
    "pandas' second column": (GOOD.replace(b"id,y", b"id,y.1"), "header"),
    "zero-width header": (GOOD.replace(b"id,y", "id,\u200by".encode()), "header"),
    "fullwidth header": (GOOD.replace(b"id,y", "id,\uff59".encode()), "header"),
    "nan": (GOOD.replace(b"2", b"NaN"), "not_finite"),
    "infinity": (GOOD.replace(b"2", b"-inf"), "not_finite"),
    "1e400": (GOOD.replace(b"2", b"1e400"), "not_finite"),
    "blank value": (GOOD.replace(b"2", b""), "blank"),
    "bool": (GOOD.replace(b"2", b"True"), "not_a_number"),
    "underscore": (GOOD.replace(b"2", b"1_0"), "not_a_number"),
    "fullwidth digit": (GOOD.replace(b"2", "\uff12".encode()), "not_a_number"),
    "hexadecimal": (GOOD.replace(b"2", b"0x2"), "not_a_number"),
    "complex": (GOOD.replace(b"2", b"2j"), "not_a_number"),
    "NUL": (GOOD.replace(b"2", b"2\0"), "nul"),
    "Latin-1": (GOOD.replace(b"2", b"\xe9"), "encoding"),
    "open quote": (GOOD.replace(b"2", b'"2'), "csv"),
}


def verdict(reader, raw, wanted):
    try:
        return {name: list(column) for name, column in reader(raw, wanted).items()}
    except SubmissionError as error:
        return error.code


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("reader", [read, read_exactly])
def test_the_golden_table(reader, name):
    raw, expected = GOLDEN[name]
    assert verdict(reader, raw, FLOATS) == ({"y": expected} if isinstance(expected, list) else expected)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("int", b"2", 2.0),
        ("int", b"2.0", 2.0),
        ("int", b"2.5", "not_an_integer"),
        ("int", b"1e17", "not_an_integer"),
        ("str", b"two words", "two words"),
        ("str", b"", "blank"),
        ("str", "\u00e9".encode(), "\u00e9"),
        (("a", "b"), b"b", "b"),
        (("a", "b"), b"B", "unknown_label"),
        (("a", "b"), b"", "blank"),
    ],
)
@pytest.mark.parametrize("reader", [read, read_exactly])
def test_each_kind_of_column(reader, kind, value, expected):
    found = verdict(reader, b"id,y\n1," + value + b"\n", Wanted("id", {"y": kind}, {"1": 0}))
    assert found == (expected if found in ("not_an_integer", "blank", "unknown_label") else {"y": [expected]})


def test_numbers_keep_to_the_range():
    wanted = Wanted("id", {"p": "float"}, {"1": 0}, low=0.0, high=1.0)
    assert verdict(read, b"id,p\n1,1\n", wanted) == {"p": [1.0]}
    assert verdict(read, b"id,p\n1,1.0001\n", wanted) == "out_of_range"
    assert verdict(read, b"id,p\n1,-2\n", wanted) == "out_of_range"


def test_the_quick_reader_takes_plain_files_and_no_others():
    assert plain_columns(GOOD) == {"id": ["007", "NA", "null"], "y": ["1", "2", "3"]}
    assert plain_columns(b'id,y\n"007",1\n') is None
    assert plain_columns(b"id,y\n007,1,NA\n2\n") is None


PIECES = st.sampled_from(
    [
        b"id,y",
        b"y,id",
        b"007",
        b"NA",
        b"null",
        b",",
        b"\n",
        b"\r\n",
        b"\r",
        b'"',
        b"1",
        b"-2.5",
        b"1e5",
        b" ",
        b"\t",
        b"nan",
        b"1e999",
        b"\0",
        b"\xff",
        "\u00e9".encode(),
        b"\xef\xbb\xbf",
        b"0.5,007",
        b"_",
        b".",
    ]
)
LINES = st.lists(
    st.tuples(st.sampled_from([b"007", b"NA", b"null", b"x"]), st.one_of(st.floats().map(lambda x: repr(x).encode()), PIECES)),
    max_size=5,
)
FILES = st.one_of(
    st.lists(PIECES, max_size=25).map(b"".join),
    st.binary(max_size=40),
    st.builds(
        lambda lines, end: b"id,y" + end + end.join(i + b"," + v for i, v in lines) + end,
        LINES,
        st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]),
    ),
    st.builds(
        lambda order, values: b"id,y\n" + b"".join(i + b"," + v + b"\n" for i, v in zip(order, values, strict=True)),
        st.permutations([b"007", b"NA", b"null"]),
        st.lists(st.one_of(st.floats().map(lambda x: repr(x).encode()), PIECES), min_size=3, max_size=3),
    ),
)


@pytest.mark.parametrize(("examples", "pandas_from"), [(150, 1), (150, 10**9), pytest.param(1500, 1, marks=pytest.mark.slow)])
def test_any_bytes_end_in_a_result_or_a_code_and_both_readers_agree(monkeypatch, examples, pandas_from):
    monkeypatch.setattr(strict_csv, "PANDAS_FROM", pandas_from)

    @settings(max_examples=examples, deadline=None)
    @given(FILES, st.sampled_from(["float", "int", "str", ("1", "NA")]))
    def law(raw, kind):
        wanted = Wanted("id", {"y": kind}, IDS)
        found = verdict(read, raw, wanted)
        assert found == verdict(read_exactly, raw, wanted)
        if isinstance(found, dict):
            assert len(found["y"]) == len(IDS)
            assert kind not in ("int", "float") or np.all(np.isfinite(found["y"]))

    law()


@pytest.mark.slow
@pytest.mark.parametrize("pandas_from", [1, 10**9])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_both_readers_agree_on_wide_plain_files(monkeypatch, pandas_from, data):
    monkeypatch.setattr(strict_csv, "PANDAS_FROM", pandas_from)
    ids = data.draw(st.lists(st.text("ab\u00e90", min_size=1, max_size=70), min_size=1, max_size=6, unique=True))
    wanted = Wanted("id", {"x": "float", "t": "str", "n": "int"}, {one: place for place, one in enumerate(ids)})
    number = st.one_of(
        st.floats(allow_nan=False).map(repr), st.integers().map(str), st.text("0123456789+-.eE", min_size=1, max_size=8)
    )
    whole = st.one_of(st.integers(-10, 10).map(str), number)
    text = st.text("ab\u00e9", min_size=1, max_size=9)
    lines = [",".join([data.draw(number), one, data.draw(text), data.draw(whole)]) for one in data.draw(st.permutations(ids))]
    raw = "\n".join(["x,id,t,n", *lines]).encode()
    assert verdict(read, raw, wanted) == verdict(read_exactly, raw, wanted)


def test_long_ids_are_told_apart_to_the_last_character():
    first = "x" * 16
    wanted = Wanted("id", {"y": "float"}, {first: 0, "b": 1})
    assert verdict(read, f"id,y\nb,1\n{first},2\n".encode(), wanted) == {"y": [2.0, 1.0]}
    assert verdict(read, f"id,y\nb,1\n{first[:-1]}y,2\n".encode(), wanted) == "unknown_id"


BLOWUPS = {
    "300,000 columns": b"c," * 300_000 + b"\n1,2\n",
    "a field of 40 MB": b"id,y\n007," + b"1" * 40_000_000 + b"\n",
    "a quoted field of 40 MB": b'id,y\n007,"' + b"1\n" * 20_000_000 + b'"\n',
    "20 M blank lines": b"id,y\n" + b"\n" * 20_000_000,
    "too many rows": b"id,y\n" + b"007,1\n" * 5_000_000,
    "40 MB without a newline": b"x" * 40_000_000,
}


@pytest.mark.parametrize("name", BLOWUPS)
def test_blow_ups_are_refused_in_little_time_and_memory(name):
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(SubmissionError) as caught:
            read(BLOWUPS[name], FLOATS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5
    assert peak < 2 * len(BLOWUPS[name]) + 50_000_000
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", [name for name, (_, expected) in GOLDEN.items() if isinstance(expected, str)])
def test_messages_do_not_repeat_the_files_values(name):
    raw = GOLDEN[name][0]
    with pytest.raises(SubmissionError) as caught:
        read(raw.replace(b"1", b"123454321"), FLOATS)
    assert "12345" not in str(caught.value)
