import warnings

import numpy as np
import pytest
import sklearn.metrics as reference

from dojo_kernel.competition.metrics import METRICS, find_metric, metric
from dojo_kernel.competition.strict_csv import Wanted, read
from dojo_kernel.errors import ConfigError, SubmissionError


def sample(name, seed, rows=60):
    """Truth and an imperfect prediction that the metric takes."""
    random = np.random.default_rng(seed)
    needs = METRICS[name].needs
    if needs in ("labels", "integers"):
        truth = random.integers(0, 3, rows).astype(float)
        return truth, np.where(random.random(rows) < 0.7, truth, random.integers(0, 3, rows)).astype(float)
    if needs == "probabilities":
        return np.eye(3)[random.integers(0, 3, rows)], random.dirichlet([1, 1, 1], rows)
    if name == "roc_auc":
        truth = (random.random(rows) < 0.4).astype(float)
        return truth, np.round(truth * 0.3 + random.random(rows), 1)
    truth = np.abs(random.normal(20, 5, rows)) + 1
    return truth, truth + random.normal(0, 2, rows)


def loss(name, truth, prediction):
    score = METRICS[name](truth, prediction)
    return -score if METRICS[name].better == "higher" else score


every_metric = pytest.mark.parametrize("name", sorted(METRICS))


@every_metric
@pytest.mark.parametrize("seed", range(2))
def test_the_truth_itself_is_unbeatable(name, seed):
    truth, prediction = sample(name, seed)
    perfect = METRICS[name](truth, truth.copy())
    assert loss(name, truth, truth.copy()) <= loss(name, truth, prediction)
    bound = METRICS[name].high if METRICS[name].better == "higher" else METRICS[name].low
    assert perfect == pytest.approx(bound, abs=1e-9)


@every_metric
def test_the_order_of_the_rows_does_not_matter(name):
    truth, prediction = sample(name, 1)
    order = np.random.default_rng(2).permutation(len(truth))
    assert METRICS[name](truth[order], prediction[order]) == pytest.approx(METRICS[name](truth, prediction))


@every_metric
def test_arguments_are_left_as_they_were(name):
    truth, prediction = sample(name, 1)
    truth.setflags(write=False)
    prediction.setflags(write=False)
    METRICS[name](truth, prediction)


@every_metric
def test_scores_keep_to_the_declared_range(name):
    for seed in range(20):
        score = METRICS[name](*sample(name, seed, rows=12))
        assert np.isfinite(score)
        assert METRICS[name].low is None or score >= METRICS[name].low
        assert METRICS[name].high is None or score <= METRICS[name].high


@every_metric
@pytest.mark.parametrize("poison", ["nan", "inf", "-inf", "", "1e400", "-2", "1e308"])
def test_no_value_put_in_place_of_a_prediction_improves_a_score(name, poison):
    truth, prediction = (array.reshape(len(array), -1) for array in sample(name, 3, rows=30))
    prediction = (prediction + truth) / 2 if METRICS[name].needs not in ("labels", "integers") else truth
    columns = [f"c{place}" for place in range(truth.shape[1])]
    bounds = {"low": 0.0, "high": 1.0} if METRICS[name].needs == "probabilities" else {}
    wanted = Wanted("id", dict.fromkeys(columns, "float"), {str(row): row for row in range(len(truth))}, **bounds)
    flat = (lambda array: array[:, 0]) if truth.shape[1] == 1 else (lambda array: array)
    honest = loss(name, flat(truth), flat(prediction))
    for row in range(len(truth)):
        fields = prediction.astype(str).tolist()
        fields[row][0] = poison
        raw = "\n".join([",".join(["id", *columns]), *(",".join([str(i), *line]) for i, line in enumerate(fields))]).encode()
        if poison != "-2" or wanted.low == 0.0:
            with pytest.raises(SubmissionError) as caught:
                read(raw, wanted)
            assert caught.value.code in ("not_finite", "not_a_number", "blank", "out_of_range")
            continue
        table = read(raw, wanted)
        poisoned = np.column_stack([table[column] for column in columns])
        if name == "roc_auc" and truth[row, 0] == 0:
            continue  # lower is right for a row of class 0
        assert loss(name, flat(truth), flat(poisoned)) >= honest - 1e-12


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("accuracy", reference.accuracy_score),
        ("f1_macro", lambda t, p: reference.f1_score(t, p, average="macro")),
        ("f1", lambda t, p: reference.f1_score(t, p, labels=[1], average="macro")),
        ("quadratic_weighted_kappa", lambda t, p: reference.cohen_kappa_score(t, p, weights="quadratic")),
        ("roc_auc", reference.roc_auc_score),
        ("log_loss", reference.log_loss),
        ("rmse", lambda t, p: reference.mean_squared_error(t, p) ** 0.5),
        ("mae", reference.mean_absolute_error),
        ("rmsle", lambda t, p: reference.mean_squared_log_error(t, p) ** 0.5),
        ("r2", reference.r2_score),
        ("mape", reference.mean_absolute_percentage_error),
    ],
)
def test_the_same_as_scikit_learn(name, theirs):
    for seed in range(10):
        truth, prediction = sample(name, seed)
        assert METRICS[name](truth, prediction) == pytest.approx(theirs(truth, prediction), rel=1e-9)


def test_string_labels_are_scored():
    truth, prediction = np.array(["a", "b", "b", "c"], dtype=object), np.array(["a", "b", "c", "c"], dtype=object)
    assert METRICS["accuracy"](truth, prediction) == 0.75
    assert METRICS["f1_macro"](truth, prediction) == pytest.approx(
        reference.f1_score(truth.astype(str), prediction.astype(str), average="macro")
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_constant_gives_half_the_area_in_any_order(order):
    truth = np.array([0.0, 0, 1, 1, 1])[::order]
    assert METRICS["roc_auc"](truth, np.full(5, 3.0)) == 0.5


def test_log_loss_normalises_rows_and_clips_as_kaggle_does():
    truth = np.array([[1.0, 0, 0]])
    assert METRICS["log_loss"](truth, np.array([[0.2, 0.1, 0.1]])) == pytest.approx(-np.log(0.5))
    assert METRICS["log_loss"](truth, np.array([[0.0, 1, 0]])) == pytest.approx(-np.log(1e-15))
    assert METRICS["log_loss"](truth, np.zeros((1, 3))) == pytest.approx(-np.log(1e-15))
    assert METRICS["log_loss"](np.array([1.0, 0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))


def test_smape_is_in_percent_and_two_zeros_agree():
    assert METRICS["smape"](np.array([0.0, 1.0]), np.array([0.0, 3.0])) == pytest.approx(50.0)


def test_edge_cases_of_agreement():
    same = np.ones(3)
    assert METRICS["quadratic_weighted_kappa"](same, same) == 1.0
    assert METRICS["f1"](np.zeros(3), np.zeros(3)) == 0.0


def test_a_metric_of_ones_own_lies_beside_the_spec(tmp_path):
    (tmp_path / "metric.py").write_text(
        "import numpy as np\nfrom dojo_kernel.competition.metrics import metric\n"
        "@metric(better='lower', low=0.0)\ndef worst(truth, prediction):\n    '''Largest error.'''\n    return np.max(np.abs(truth - prediction))\n"
        "def plain(truth, prediction):\n    return 0\n"
    )
    worst = find_metric("metric.py:worst", tmp_path)
    assert (worst(np.array([1.0, 2]), np.array([1.0, 5])), worst.better, worst.doc) == (3.0, "lower", "Largest error.")
    assert find_metric("metric.py:worst", tmp_path) is worst
    assert find_metric("dojo_kernel.competition.metrics:rmse", tmp_path) is METRICS["rmse"]
    (tmp_path / "sub").mkdir()
    for address in ("metric.py:plain", "metric.py:absent", "absent.py:worst", "nothing", "../metric.py:worst"):
        with pytest.raises(ConfigError):
            find_metric(address, tmp_path / "sub" if address.startswith("..") else tmp_path)


@every_metric
def test_each_metric_says_what_it_computes(name):
    assert METRICS[name].doc.endswith((".", "sklearn"))


def test_a_metric_says_which_columns_it_cannot_score():
    with pytest.raises(ConfigError, match="one predicted column"):
        METRICS["roc_auc"].check(("float", "float"))
    with pytest.raises(ConfigError, match="int or float"):
        METRICS["rmse"].check(("str",))
    with pytest.raises(ConfigError, match="must be int"):
        METRICS["f1"].check(("float",))
    metric(better="higher", needs="labels", columns="many")(lambda truth, prediction: 0.0).check(("str", ("a", "b")))


def test_metrics_warn_of_nothing_on_honest_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in METRICS:
            METRICS[name](*sample(name, 0))
