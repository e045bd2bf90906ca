"""iopub messages -> outputs, for everything that a kernel may send."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dojo_kernel.kernel.outputs import Collector, Line, as_json, clean, shorten
from dojo_kernel.records import Display, Error, Result, Stream

CAP = 10_000


def collect(*messages: tuple[str, object], cap: int = CAP) -> Collector:
    collector = Collector(cap)
    for kind, content in messages:
        collector.add(kind, content)
    return collector


def out(text: str, name: str = "stdout") -> tuple[str, object]:
    return "stream", {"name": name, "text": text}


def shown(data: dict[str, object], display_id: str | None = None, kind: str = "display_data") -> tuple[str, object]:
    return kind, {"data": data, "metadata": {}, "transient": {"display_id": display_id} if display_id else {}}


def test_neighbouring_streams_are_merged():
    assert collect(out("a"), out("b\n"), out("c")).outputs() == (Stream(name="stdout", text="ab\nc"),)


def test_streams_of_two_names_keep_their_order():
    outputs = collect(out("a"), out("b", "stderr"), out("c")).outputs()
    assert [(output.name, output.text) for output in outputs] == [("stdout", "a"), ("stderr", "b"), ("stdout", "c")]


TERMINAL = {
    "overwritten": (["10%\r20%\r30%\n"], "30%\n"),
    "overwritten in pieces": (["10%", "\r20%", "\r30%"], "30%"),
    "shorter text leaves the rest": (["abcdef\rxy"], "xycdef"),
    "return at the end erases nothing": (["abc\r"], "abc"),
    "return before text that comes later": (["abc\r", "x"], "xbc"),
    "windows newlines": (["a\r\nb\r\n"], "a\nb\n"),
    "backspaces": (["1\b2\b3"], "3"),
    "backspace at the start of a line": (["\b\bx"], "x"),
    "earlier lines stay": (["a\nb\rc\n"], "a\nc\n"),
}


@pytest.mark.parametrize(("pieces", "expected"), TERMINAL.values(), ids=TERMINAL)
def test_a_line_is_rendered_as_a_terminal_shows_it(pieces, expected):
    assert collect(*(out(piece) for piece in pieces)).outputs() == (Stream(name="stdout", text=expected),)


def test_a_hundred_thousand_progress_updates_are_one_line():
    collector = Collector(CAP)
    for number in range(100_000):
        collector.add(*out(f"\r{number:6}"))
    assert collector.outputs() == (Stream(name="stdout", text=" 99999"),)
    assert collector.dropped == 0


def test_a_flood_keeps_head_and_tail_and_counts_the_rest():
    collector = Collector(CAP)
    for number in range(100_000):
        collector.add(*out(f"line {number}\n"))
    text = "".join(output.text for output in collector.outputs())
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 99998\nline 99999\n")
    assert f"[... output cut here, {collector.dropped} characters ...]" in text
    assert len(text) < CAP + 200
    assert collector.dropped > 900_000


def test_one_message_longer_than_the_cap_keeps_head_and_tail():
    collector = collect(out("head" + "x" * 1_000_000 + "tail"))
    text = collector.outputs()[0].text
    assert (text[:4], text[-4:]) == ("head", "tail")
    assert len(text) < CAP + 200


def test_a_million_empty_outputs_are_bounded_too():
    collector = Collector(CAP)
    for number in range(20_000):
        collector.add(*out("a", "stdout" if number % 2 else "stderr"))
    assert len(collector.outputs()) < CAP / 20


def test_clear_output_forgets_what_was_shown():
    assert collect(out("a"), shown({"text/plain": "b"}), ("clear_output", {"wait": False}), out("c")).outputs() == (
        Stream(name="stdout", text="c"),
    )


def test_clear_output_can_wait_for_the_next_output():
    waiting = collect(out("a"), ("clear_output", {"wait": True}))
    assert waiting.outputs() == (Stream(name="stdout", text="a"),)
    waiting.add(*out("b"))
    assert waiting.outputs() == (Stream(name="stdout", text="b"),)


def test_a_display_is_updated_in_place():
    outputs = collect(shown({"text/plain": "1"}, "d"), out("x"), shown({"text/plain": "2"}, "d", "update_display_data")).outputs()
    assert outputs == (Display(data={"text/plain": "2"}), Stream(name="stdout", text="x"))


def test_an_update_of_another_cells_display_changes_nothing():
    assert collect(shown({"text/plain": "2"}, "other", "update_display_data")).outputs() == ()


def test_growing_updates_stay_below_the_cap():
    collector = collect(*(shown({"text/plain": "x" * 2_000}, f"d{number}") for number in range(20)))
    for number in range(20):
        collector.add(*shown({"text/plain": "y" * 2_400}, f"d{number}", "update_display_data"))
    assert sum(len(str(output)) for output in collector.outputs()) < 2 * CAP


def test_widgets_become_plain_text():
    data = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "IntSlider(value=1)"}
    outputs = collect(("comm_open", {"comm_id": "x"}), shown(data)).outputs()
    assert outputs == (Display(data={"text/plain": "IntSlider(value=1)"}),)


def test_an_unknown_type_alone_leaves_a_note():
    assert "application/javascript" in collect(shown({"application/javascript": "alert(1)"})).outputs()[0].data["text/plain"]


def test_small_images_are_kept_and_large_ones_are_told():
    outputs = collect(shown({"image/png": "abcd"}), shown({"image/png": "x" * 9_000_000})).outputs()
    assert outputs[0].data == {"image/png": "abcd"}
    assert outputs[1].data == {"text/plain": "<image/png of 6,750,000 bytes, too large to keep>"}


def test_half_an_html_table_is_left_out():
    outputs = collect(shown({"text/html": "<td>" * 10_000, "text/plain": "table"})).outputs()
    assert outputs == (Display(data={"text/plain": "table"}),)


def test_an_error_is_kept_with_its_traceback():
    content = {"ename": "ValueError", "evalue": "bad", "traceback": ["one", "two"]}
    assert collect(("error", content)).outputs() == (Error(ename="ValueError", evalue="bad", traceback=("one", "two")),)


def test_a_result_has_its_number():
    content = {"execution_count": 3, "data": {"text/plain": "1"}, "metadata": {}}
    assert collect(("execute_result", content)).outputs() == (Result(execution_count=3, data={"text/plain": "1"}),)


HOSTILE = {
    "content is a list": ("stream", ["x"]),
    "content is text": ("display_data", "x"),
    "no name": ("stream", {"text": "x"}),
    "another name": ("stream", {"name": "stdin", "text": "x"}),
    "text is a number": ("stream", {"name": "stdout", "text": 5}),
    "data is a list": ("display_data", {"data": [1]}),
    "data is missing": ("execute_result", {}),
    "update without id": ("update_display_data", {"data": {"text/plain": "x"}}),
    "traceback is text": ("error", {"ename": "E", "evalue": "v", "traceback": "x"}),
    "ename is a number": ("error", {"ename": 5, "evalue": "v", "traceback": []}),
}


@pytest.mark.parametrize(("kind", "content"), HOSTILE.values(), ids=HOSTILE)
def test_content_of_another_type_is_refused(kind, content):
    assert Collector(CAP).add(kind, content) is False


def test_numbers_where_text_belongs_become_text():
    assert collect(shown({"text/plain": 10**30})).outputs()[0].data == {"text/plain": str(10**30)}


def test_a_huge_number_is_named_only():
    assert collect(shown({"text/plain": 10**5_000})).outputs()[0].data == {"text/plain": "<int>"}


def test_nan_becomes_text():
    data = collect(shown({"application/json": {"a": float("nan"), "b": [float("inf")]}})).outputs()[0].data
    assert data == {"application/json": {"a": "nan", "b": ["inf"]}}


def test_an_odd_execution_count_is_none():
    for count in (True, -1, 2**60, "1", 1.5):
        content = {"execution_count": count, "data": {"text/plain": "1"}, "metadata": {}}
        assert collect(("execute_result", content)).outputs()[0].execution_count is None


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert clean("a\ud800b") == "a\ufffdb"
    assert clean("\ud83d\ude00") == "\U0001f600"


def test_deep_json_is_cut_off():
    nested: object = 1
    for _ in range(500):
        nested = [nested]
    assert json.dumps(as_json(nested))


@given(st.text(), st.integers(min_value=2, max_value=100))
def test_shortening_never_lengthens_beyond_its_note(text, limit):
    short, cut = shorten(text, limit)
    assert len(short) <= limit + 60
    assert cut == max(len(text) - limit // 2 * 2, 0) or len(text) <= limit


@given(st.lists(st.text(alphabet="ab\n\r\b", max_size=20), max_size=8))
def test_rendering_does_not_depend_on_how_text_is_cut(pieces):
    apart, together = Line(), Line()
    split = "".join(apart.write(piece) for piece in pieces) + apart.end()
    assert split == together.write("".join(pieces)) + together.end()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KINDS = st.sampled_from(["stream", "display_data", "execute_result", "update_display_data", "clear_output", "error", "comm_msg"])
FIELDS = st.dictionaries(st.sampled_from(["name", "text", "data", "metadata", "transient", "wait", "ename", "traceback"]), ANY)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(KINDS, ANY | FIELDS | FIELDS.map(lambda content: {**content, "data": content}))))
def test_no_content_whatever_raises_or_yields_invalid_outputs(messages):
    collector = Collector(500)
    for kind, content in messages:
        collector.add(kind, content)
    for output in collector.outputs():
        output.model_dump_json().encode()
