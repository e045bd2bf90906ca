"""The leaks that catalogues of competitions have had, each built on synthetic rows and found; and clean rows that pass."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from competition_fixtures import make_competition

from dojo_kernel.cli import main
from dojo_kernel.competition import lint as lint_module
from dojo_kernel.competition.lint import lint

ROWS = 400
LABELS = np.array(["cat", "dog", "owl"])


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))


def rows(seed=0, count=ROWS, *, quantity=False, classes=2):
    """Rows of a table with features that say something about the target, as in any competition."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({
        "Id": [f"{value:08x}" for value in rng.choice(16**6, count, replace=False) * 200],
        "size": rng.normal(0, 1, count).round(3),
        "kind": rng.choice(["a", "b", "c"], count),
        "age": rng.integers(1, 80, count),
        "day": pd.to_datetime("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**7, count), unit="s"),
    })  # fmt: skip
    strength = table["size"] + rng.normal(0, 1, count)
    table["y"] = (10 * np.exp(strength)).round(3) if quantity else pd.qcut(strength, classes, labels=False)
    return table


def competition(  # noqa: PLR0913 - each by its keyword
    tmp_path, table, *, columns=None, quantity=False, extra="", side=("Id",)
):
    """Its first half as train, the other as test; `y` and what is made of it stay out of test unless put back."""
    kind = "float" if quantity else "int"
    names = [name for name in table.columns if name.startswith("y")]
    test = table.iloc[len(table) // 2 :]
    spec = make_competition(
        tmp_path,
        metric="rmse" if quantity else "accuracy" if len(names) == 1 else "log_loss",
        columns=columns or "{ " + ", ".join(f'{name} = "{kind if len(names) == 1 else "float"}"' for name in names) + " }",
        answers=test[[*side, *names]].to_csv(index=False),
        extra=extra,
    )
    public = spec.public_dir
    table.iloc[: len(table) // 2].to_csv(public / "train.csv", index=False)
    test.drop(columns=names).to_csv(public / "test.csv", index=False)
    sample = test[["Id"]].assign(**dict.fromkeys(names, 0))
    sample.to_csv(public / "sample_submission.csv", index=False)
    return spec, public, test


def blocking(spec):
    return {finding.check for finding in lint(spec, spec.public_dir, spec.private_dir) if finding.blocks}


def write(public, test, name="test.csv", **columns):
    test.drop(columns="y").assign(**columns).to_csv(public / name, index=False)


def as_text(test):
    return test[["Id", "y"]].astype(str)


def target_in_test(public, test):
    write(public, test, y=test["y"])


def target_under_another_name(public, test):
    write(public, test, outcome=test["y"].map(lambda value: f"v{value}" if isinstance(value, int) else 3 * value + 1))


def sample_is_the_truth(public, test):
    test[["Id", "y"]].to_csv(public / "sample_submission.csv", index=False)


def sample_is_nearly_the_truth(public, test):
    guess = test["y"].where(np.random.default_rng(1).random(len(test)) < 0.8, test["y"].sample(frac=1, random_state=0).to_numpy())
    test[["Id"]].assign(y=guess).to_csv(public / "sample_submission.csv", index=False)


def side_table_with_labels(public, test):
    as_text(test).sample(frac=1, random_state=0).rename(columns={"y": "state"}).to_csv(public / "meta.csv", index=False)


def side_table_by_another_key(public, test):
    keys = np.random.default_rng(5).permutation(len(test))
    write(public, test, place=[f"p{key}" for key in keys])
    pd.DataFrame({"place": [f"p{key}" for key in keys], "state": test["y"]}).to_csv(public / "places.csv", index=False)


def raw_zip_with_labels(public, test):
    with zipfile.ZipFile(public / "train.csv.zip", "w") as archive:
        archive.writestr("train.csv", test.to_csv(index=False))


def raw_tar_with_labels(public, test):
    data = test.to_csv(index=False).encode()
    with tarfile.open(public / "raw.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("train.csv")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def records_with_labels(public, test):
    records = [{"key": one, "note": {"state": value}} for one, value in as_text(test).itertuples(index=False)]
    (public / "meta.json").write_text(json.dumps(records))


def coco_with_labels(public, test):
    notes = [{"image_id": one, "category_id": value} for one, value in as_text(test).itertuples(index=False)]
    (public / "meta.json").write_text(json.dumps({"info": {"year": 2020}, "annotations": notes}))


def lines_with_labels(public, test):
    records = [json.dumps({"id": one, "state": value}) for one, value in as_text(test).itertuples(index=False)]
    (public / "meta.jsonl").write_text("\n".join(records))


def a_record_file_for_each_id(public, test):
    (public / "test").mkdir()
    for one, value in as_text(test).itertuples(index=False):
        (public / "test" / f"{one}.json").write_text(json.dumps({"width": 3, "shape": {"state": value}}))


def text_with_labels(public, test):
    (public / "notes.txt").write_text("\n".join(f"{one} -> {value}" for one, value in as_text(test).itertuples(index=False)))


def test_rows_in_train(public, test):
    train = pd.read_csv(public / "train.csv")
    pd.concat([train, test.assign(Id="z" + test["Id"])]).to_csv(public / "train.csv", index=False)


def test_rows_in_train_with_new_names(public, test):
    train = pd.read_csv(public / "train.csv")
    both = pd.concat([train, test.assign(Id="z" + test["Id"])])
    both.assign(file=[f"f{n}" for n in range(len(both))]).to_csv(public / "train.csv", index=False)
    write(public, test, file=[f"g{n}" for n in range(len(test))])


def rows_in_the_order_of_the_target(public, test):
    write(public, test.sort_values("y"))


def ids_in_the_order_of_the_target(public, test):
    """The answers keep their ids, so the rows are given to other ids."""
    by_id = test.sort_values("Id")
    private = public.parent / "private" / "answers.csv"
    test.sort_values("y").assign(Id=by_id["Id"].to_numpy())[["Id", "y"]].to_csv(private, index=False)


test_rows_in_train.__test__ = False
test_rows_in_train_with_new_names.__test__ = False


@pytest.mark.parametrize(
    ("leak", "check"),
    [
        (target_in_test, "answer_column"),
        (target_under_another_name, "answer_column"),
        (sample_is_the_truth, "sample"),
        (sample_is_nearly_the_truth, "sample"),
        (side_table_with_labels, "answer_column"),
        (side_table_by_another_key, "answer_column"),
        (raw_zip_with_labels, "answer_column"),
        (raw_tar_with_labels, "answer_column"),
        (records_with_labels, "answer_column"),
        (coco_with_labels, "answer_column"),
        (lines_with_labels, "answer_column"),
        (a_record_file_for_each_id, "answer_column"),
        (text_with_labels, "answer_text"),
        (test_rows_in_train, "overlap"),
        (test_rows_in_train_with_new_names, "overlap"),
        (rows_in_the_order_of_the_target, "order"),
        (ids_in_the_order_of_the_target, "order"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("quantity", [False, True], ids=["label", "quantity"])
def test_a_known_leak_is_found(tmp_path, leak, check, quantity):
    spec, public, test = competition(tmp_path, rows(quantity=quantity), quantity=quantity)
    assert blocking(spec) == set()
    leak(public, test)
    assert check in blocking(spec)


# --- columns that could not be known before ------------------------------------------------------------------------------


def test_a_second_date_that_is_the_first_one_and_the_target_is_found(tmp_path):
    table = rows(quantity=True)
    spec, public, test = competition(tmp_path, table, quantity=True)
    write(public, test, dropoff_datetime=test["day"] + pd.to_timedelta(test["y"], unit="s"))
    assert blocking(spec) == {"proxy"}


def test_columns_that_sum_to_the_target_are_found(tmp_path):
    spec, public, test = competition(tmp_path, rows(quantity=True), quantity=True)
    part = (test["y"] * np.random.default_rng(0).random(len(test))).round(2)
    write(public, test, casual=part, registered=test["y"] - part)
    assert blocking(spec) == {"proxy"}


def test_a_column_on_a_bent_scale_is_found(tmp_path):
    spec, public, test = competition(tmp_path, rows(quantity=True), quantity=True)
    write(public, test, rank=np.log(test["y"]) ** 3)
    assert blocking(spec) == {"proxy"}


def test_a_date_that_is_filled_for_one_class_only_is_found(tmp_path):
    table = rows(classes=6)
    spec, public, test = competition(tmp_path, table)
    write(public, test, date_first_booking=test["day"].where(test["y"] != 3))
    assert blocking(spec) == {"proxy"}


def test_a_number_with_a_threshold_between_the_classes_is_found(tmp_path):
    spec, public, test = competition(tmp_path, rows())
    write(public, test, score=(test["y"] + 0.9 * np.random.default_rng(0).random(len(test))).round(4))
    assert blocking(spec) == {"proxy"}


def test_a_name_that_decides_the_label_is_found(tmp_path):
    spec, public, test = competition(tmp_path, rows())
    names = np.random.default_rng(0).integers(0, 9, len(test)) * 2 + test["y"]
    write(public, test, model=[f"m{name}" for name in names])
    assert blocking(spec) == {"proxy"}


def test_rows_of_one_group_on_both_sides_are_found_by_their_labels(tmp_path):
    table = rows(count=1200)
    group = np.random.default_rng(0).permutation(np.arange(1200) // 6)
    table.insert(1, "breath", [f"g{one}" for one in group])
    spec, *_ = competition(tmp_path, table)
    assert blocking(spec) == set()
    table["y"] = pd.Series(np.random.default_rng(1).integers(0, 2, 200))[group].to_numpy()
    spec, *_ = competition(tmp_path, table)
    assert blocking(spec) == {"related"}


def test_rows_of_one_patient_on_both_sides_are_a_warning(tmp_path):
    table = rows(count=1200)
    table.insert(1, "patient_id", np.random.default_rng(0).permutation(np.arange(1200) // 10))
    spec, public, _ = competition(tmp_path, table)
    found = lint(spec, public, spec.private_dir)
    assert [(finding.check, finding.blocks) for finding in found] == [("related", False)]


# --- ids and files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["{id}_{y}", "{y}-{id}", "{id}{y}", "x{y}_{id}"])
def test_a_label_in_the_id_is_found(tmp_path, pattern):
    table = rows(classes=3)
    table["Id"] = [pattern.format(id=one, y=value) for one, value in zip(table["Id"], table["y"], strict=True)]
    spec, *_ = competition(tmp_path, table)
    assert "ids" in blocking(spec)


def test_a_part_of_the_id_that_is_a_feature_is_no_leak(tmp_path):
    table = rows(classes=3)
    table["kind"] = LABELS[np.where(np.random.default_rng(0).random(ROWS) < 0.8, table["y"], 0)]
    table["Id"] = table["Id"] + "_" + table["kind"]
    spec, *_ = competition(tmp_path, table)
    assert blocking(spec) == set()


def pictures(tmp_path, count=300):
    table = rows(count=count, classes=3)[["Id", "y"]]
    spec, public, test = competition(tmp_path, table)
    rng = np.random.default_rng(0)
    for side, part in (("train", table.iloc[: count // 2]), ("test", test)):
        (public / side).mkdir()
        for one in part["Id"]:
            (public / side / f"{one}.png").write_bytes(rng.bytes(int(rng.integers(200, 400))))
    return spec, public, test


def test_pictures_that_tell_nothing_pass(tmp_path):
    assert blocking(pictures(tmp_path)[0]) == set()


@pytest.mark.parametrize("leak", ["name", "folder", "time", "size", "copy"])
def test_pictures_that_tell_the_label_are_found(tmp_path, leak):
    spec, public, test = pictures(tmp_path)
    for one, label in as_text(test).itertuples(index=False):
        path = public / "test" / f"{one}.png"
        if leak == "name":
            path.rename(public / "test" / f"{one}_{LABELS[int(label)]}.png")
        elif leak == "folder":
            (public / "test" / label).mkdir(exist_ok=True)
            path.rename(public / "test" / label / path.name)
        elif leak == "time":
            os.utime(path, (int(label), int(label)))
        elif leak == "size":
            path.write_bytes(b"0" * (1000 + int(label)))
        else:
            (public / "train" / f"again-{one[::-1]}.png").write_bytes(path.read_bytes())
    assert ("overlap" if leak == "copy" else "file_facts") in blocking(spec)


def test_a_locked_archive_is_a_warning(tmp_path):
    spec, public, _ = competition(tmp_path, rows())
    (public / "train.7z").write_bytes(b"7z\xbc\xaf")
    assert [finding.check for finding in lint(spec, public, spec.private_dir)] == ["sealed"]


# --- shapes of answers ---------------------------------------------------------------------------------------------------


def test_classes_named_by_the_data_are_looked_at(tmp_path):
    table = rows(classes=4)
    for label in range(4):
        table[f"y{label}"] = (table["y"] == label).astype(int)
    spec, public, test = competition(tmp_path, table.drop(columns="y"), columns='{ "*" = "float" }')
    assert blocking(spec) == set()
    hot = [f"y{label}" for label in range(4)]
    test[["Id", *hot]].to_csv(public / "sample_submission.csv", index=False)
    assert blocking(spec) == {"answer_file", "sample"}


def test_weights_and_groups_of_the_answers_may_be_public(tmp_path):
    table = rows(classes=4, count=600)
    table["w"] = np.random.default_rng(0).random(600).round(4)
    extra = 'split = { by = "kind" }'
    spec, *_ = competition(tmp_path, table, side=("Id", "kind", "w"), extra=extra)
    assert blocking(spec) == set()


def test_texts_that_are_the_answers_are_found(tmp_path):
    table = rows()
    table["y"] = [" ".join(np.random.default_rng(n).choice(LABELS, 6)) + f" {n}" for n in range(ROWS)]
    spec, public, test = competition(tmp_path, table, columns='{ y = "text" }')
    assert blocking(spec) == set()
    write(public, test, annotation=test["y"])
    assert blocking(spec) == {"answer_column"}


def test_numbered_ids_that_begin_anew_in_test_are_no_leak(tmp_path):
    table = rows()
    table["Id"] = [str(number % (ROWS // 2)) for number in range(ROWS)]
    spec, *_ = competition(tmp_path, table)
    assert blocking(spec) == set()


def test_series_in_the_order_of_their_dates_tell_no_more_than_the_date(tmp_path):
    table = rows(quantity=True).sort_values("day")
    table["y"] = np.arange(ROWS) + np.random.default_rng(0).random(ROWS).round(4)
    table["Id"] = [f"row{number:05d}" for number in range(ROWS)]
    table["day"] = table["day"].dt.date
    spec, *_ = competition(tmp_path, table, quantity=True)
    assert "order" not in blocking(spec)


# --- chance --------------------------------------------------------------------------------------------------------------


def noise(seed):
    """A small competition of a random shape in which nothing goes with the target."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(100, 400))
    table = {"Id": np.arange(count) if seed % 2 else [f"{one:x}" for one in rng.permutation(10**6)[:count]]}
    for number in range(int(rng.choice([3, 20, 150]))):
        draw = [
            lambda: rng.integers(0, int(rng.integers(2, 6)), count),
            lambda: rng.normal(0, 1, count).round(3),
            lambda: rng.choice(["", "x", "yes"], count),
            lambda: rng.integers(0, max(2, count // 4), count),
            lambda: pd.to_datetime("2015-01-01") + pd.to_timedelta(rng.integers(0, 900, count), unit="D"),
            lambda: [f"{one} {rng.integers(99)}" for one in rng.choice(LABELS, count)],
        ][number % 6]
        table[f"c{number}"] = draw()
    shape = seed % 5
    if shape == 0:
        table["y"] = rng.integers(0, 2, count)
    elif shape == 1:
        table["y"] = (rng.random(count) < 0.04).astype(int)
    elif shape == 2:
        table["y"] = rng.integers(0, 12, count)
    elif shape == 3:
        table["y"] = rng.lognormal(0, 2, count).round(2)
    else:
        for number in range(30):
            table[f"y{number}"] = rng.integers(0, 2, count)
    return pd.DataFrame(table), shape == 3


@pytest.mark.parametrize(
    "tens", [1, *(pytest.param(tens, marks=[pytest.mark.slow, pytest.mark.endurance]) for tens in range(12) if tens != 1)]
)
def test_noise_gives_nothing_away(tmp_path, tens):
    for seed in range(10 * tens, 10 * tens + 10):
        table, quantity = noise(seed)
        spec, *_ = competition(tmp_path / str(seed), table, quantity=quantity)
        assert [str(finding) for finding in lint(spec, spec.public_dir, spec.private_dir)] == [], seed


# --- bounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.endurance
@pytest.mark.slow
def test_a_huge_table_is_sampled_within_bounds_and_the_finding_says_so(tmp_path):
    rng = np.random.default_rng(0)
    count = 3_000_000
    ids, labels = rng.permutation(10**8)[:count], rng.integers(0, 2, count)
    block = "".join(f"{one},{label}\n" for one, label in zip(ids, labels, strict=True))
    spec = make_competition(tmp_path, metric="accuracy", columns='{ y = "int" }', answers="Id,y\n" + block)
    with (spec.public_dir / "test.csv").open("w") as file:
        file.write("Id,text,shade\n")
        file.writelines(f"{one},{'lorem ipsum ' * 8},{label + 5}\n" for one, label in zip(ids, labels, strict=True))
    code = (
        "import time, re, pathlib\nfrom dojo_kernel.competition.spec import find\nfrom dojo_kernel.competition.lint import lint\n"
        f"spec = find({str(spec.folder)!r})\nbefore = time.process_time()\nfound = lint(spec, spec.public_dir, spec.private_dir)\n"
        "most = re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]\n"
        "print(time.process_time() - before, int(most) / 1024, *found, sep='|')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip().split("|")
    assert float(shown[0]) < 20
    assert float(shown[1]) < 1024
    assert "'shade' tells 'y'" in shown[2]
    assert "rows of more" in shown[2]


def test_many_files_are_compared_by_a_part_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(lint_module, "_MOST_HASHED", (40, 60))
    spec, public, test = pictures(tmp_path)
    assert blocking(spec) == set()
    for one in test["Id"][::2]:
        (public / "train" / f"z{one[::-1]}.png").write_bytes((public / "test" / f"{one}.png").read_bytes())
    found = lint(spec, public, spec.private_dir)
    assert any(finding.check == "overlap" and "estimated from 40 files" in finding.why for finding in found)


# --- the command ---------------------------------------------------------------------------------------------------------


def called(capfd, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["lint", *arguments])
    return end.value.code, capfd.readouterr().out


def test_the_command_ends_with_2_where_answers_are_given_away(tmp_path, capfd):
    spec, public, test = competition(tmp_path, rows())
    assert called(capfd, str(spec.folder)) == (0, "small: no answers found in public/\n")
    target_in_test(public, test)
    status, out = called(capfd, str(spec.folder))
    assert status == 2
    assert "leak: test.csv: has the column 'y' for test ids [answer_column]" in out
    status, out = called(capfd, str(spec.folder), "--json")
    report = json.loads(out)[0]
    assert (status, report["slug"], report["clean"]) == (2, "small", False)
    assert report["findings"][0] == {
        "check": "answer_column", "file": "test.csv", "why": "has the column 'y' for test ids", "blocks": True, "accepted": False,
    }  # fmt: skip


def test_what_the_spec_accepts_is_told_and_ends_with_0(tmp_path, capfd):
    spec, public, test = competition(tmp_path, rows())
    target_in_test(public, test)
    path = spec.folder / "competition.toml"
    path.write_text(path.read_text().replace('recipe = "none"', 'recipe = "none"\naccept = ["answer_column"]'))
    status, out = called(capfd, str(spec.folder))
    assert status == 0
    assert "accepted: test.csv" in out


def test_what_is_not_prepared_is_a_line_that_says_how(tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        main(["lint", "wine"])
    assert end.value.code == 2
    assert "dojo prepare wine" in capfd.readouterr().err
