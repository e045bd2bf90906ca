import pytest
from competition_fixtures import make_competition
from hypothesis import given, settings
from hypothesis import strategies as st

from dojo_kernel.competition.spec import Split, bundled_slugs, catalogue, find
from dojo_kernel.errors import ConfigError, NotPreparedError

MINIMAL = 'title = "T"\nmetric = "rmse"\n[submission]\nid = "i"\ncolumns = { y = "float" }\n[prepare]\nrecipe = "r"\n'


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "my-own"
    path.mkdir()
    return path


def write(folder, text):
    (folder / "competition.toml").write_text(text)
    return folder


def test_a_short_spec_has_sensible_defaults(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    found = find(write(folder, MINIMAL))
    assert (found.slug, found.better, found.decimals, found.split, found.board.kind) == (
        "my-own",
        "lower",
        5,
        Split(),
        "reference",
    )
    assert (found.split.mode, found.split.public_fraction) == ("public_private", 0.3)
    assert found.public_dir == tmp_path / "data" / "my-own" / "public"
    assert found.submission.names == ("i", "y")
    assert find(str(folder)) == found == find(folder / "competition.toml")


def test_recipe_parameters_are_free(folder):
    found = find(write(folder, MINIMAL + 'source = "a.csv"\nseed = 3\n'))
    assert found.prepare.parameters == {"source": "a.csv", "seed": 3}


def test_labels_are_strings(folder):
    found = find(write(folder, MINIMAL.replace('"rmse"', '"accuracy"').replace('"float"', "[0, 1, 2]")))
    assert found.submission.columns == {"y": ("0", "1", "2")}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (('title = "T"\n', ""), "title"),
        (("title", "tittle"), "tittle"),
        (('"rmse"', '"rsme"'), "metric"),
        (('"rmse"', '"roc_auc"'), ""),
        (('"float"', '"double"'), "submission.columns.y"),
        (('"float"', '["a"]'), "submission"),
        (('"float"', '"str"'), "metric"),
        (('{ y = "float" }', "{}"), "submission.columns"),
        (('y = "float"', 'i = "float"'), "submission"),
        (("[prepare]", "[prepared]"), "prepare"),
        (("[submission]", "decimals = -1\n[submission]"), "decimals"),
        (("[submission]", "split = { public_fraction = 1.5 }\n[submission]"), "split.public_fraction"),
        (("[submission]", 'slug = "x"\n[submission]'), "slug"),
        (("[submission]", "[submission"), "TOML"),
    ],
)
def test_a_broken_spec_is_one_line_with_file_and_key(folder, change, names):
    text = MINIMAL.replace(*change)
    write(folder, text)
    if names == "":
        find(folder)
        return
    with pytest.raises(ConfigError) as caught:
        find(folder)
    assert "competition.toml" in str(caught.value)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["two--dashes", "under_score", "-a", "a" * 101])
def test_a_slug_is_plain(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(ConfigError, match="slug"):
        find(write(path, MINIMAL))


@pytest.mark.parametrize("name", ["", "../x", "/nowhere", "nul\0", "no-such-competition", "."])
def test_what_cannot_be_found_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_every_bundled_competition_is_found_by_its_slug_and_by_a_near_miss():
    for competition in catalogue():
        assert find(competition.slug) == competition
        assert competition.description.strip()
        with pytest.raises(ConfigError, match=f"did you mean .*{competition.slug}"):
            find(competition.slug + "s")
    assert [one.slug for one in catalogue()] == bundled_slugs()


def test_an_unprepared_competition_names_the_command(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    with pytest.raises(NotPreparedError, match="dojo prepare my-own"):
        find(write(folder, MINIMAL)).manifest_sha256()


def test_a_prepared_one_has_a_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    assert len(make_competition(tmp_path, answers="Id,y\n1,2\n").manifest_sha256()) == 64


def test_about_the_fraction_of_rows_is_public_and_always_the_same_ones():
    split = Split(public_fraction=0.3, seed=1)
    public = [split.is_public(str(row)) for row in range(5000)]
    assert 0.27 < sum(public) / 5000 < 0.33
    assert public == [Split(seed=1).is_public(str(row)) for row in range(5000)]
    assert public != [Split(seed=2).is_public(str(row)) for row in range(5000)]


@settings(max_examples=100, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from([*MINIMAL.splitlines(), "y = [", '"" = 1', "[board]", "a.b.c = 1", "title = 1"]), max_size=9
        ).map("\n".join),
    )
)
def test_any_text_is_a_spec_or_a_config_error(text, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any-text"
    folder.mkdir(exist_ok=True)
    (folder / "competition.toml").write_text(text, encoding="utf-8", errors="replace")
    problem = ""
    try:
        assert find(folder).title
    except ConfigError as error:
        problem = str(error)
    assert "\n" not in problem
