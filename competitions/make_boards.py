"""Makes the reference boards: honest programs of growing strength, trained on public/ only and graded as an agent would be.

Run `python competitions/make_boards.py [SLUG ...]` with the competitions prepared. Nobody on these boards is a person.
"""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from dojo_kernel.competition import catalogue
from dojo_kernel.competition.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dojo_kernel.competition import Competition

Entry = tuple[str, Any, list[str] | None]
"""Name, model, and the features it looks at (None: all)."""


def classifiers(columns: list[str]) -> Iterator[Entry]:
    """Programs that name a class."""
    yield "class priors", None, None
    for count in (1, 2, 3, 5):
        few = columns[:count]
        yield f"stump on {count} features", DecisionTreeClassifier(max_depth=1, random_state=0), few
        yield f"tree of depth 3 on {count} features", DecisionTreeClassifier(max_depth=3, random_state=0), few
        yield f"logistic regression on {count} features", make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), few
        yield f"naive Bayes on {count} features", GaussianNB(), few
        yield f"5 neighbours on {count} features", make_pipeline(StandardScaler(), KNeighborsClassifier(5)), few
    for depth in (1, 2, 3, 5, 8):
        yield f"tree of depth {depth}", DecisionTreeClassifier(max_depth=depth, random_state=0), None
    yield "naive Bayes", GaussianNB(), None
    for k in (1, 5, 15):
        yield f"{k} neighbours, unscaled", KNeighborsClassifier(k), None
        yield f"{k} neighbours, scaled", make_pipeline(StandardScaler(), KNeighborsClassifier(k)), None
    for c in (0.0001, 0.01, 0.1, 1.0):
        yield f"logistic regression, C={c}", make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)), None
    for n in (3, 10, 100):
        yield f"forest of {n}", RandomForestClassifier(n, random_state=0), None
    yield "100 extra trees", ExtraTreesClassifier(100, random_state=0), None
    yield "20 boosted trees", GradientBoostingClassifier(n_estimators=20, random_state=0), None


def regressors(columns: list[str]) -> Iterator[Entry]:
    """Programs that predict a quantity."""
    yield "mean", None, None
    for count in (1, 2, 3, 5):
        few = columns[:count]
        for depth in (1, 3):
            yield f"tree of depth {depth} on {count} features", DecisionTreeRegressor(max_depth=depth, random_state=0), few
        yield f"ridge on {count} features", make_pipeline(StandardScaler(), Ridge(1.0)), few
        yield f"5 neighbours on {count} features", make_pipeline(StandardScaler(), KNeighborsRegressor(5)), few
        yield f"25 neighbours on {count} features", make_pipeline(StandardScaler(), KNeighborsRegressor(25)), few
    for depth in (1, 2, 3, 5, 8):
        yield f"tree of depth {depth}", DecisionTreeRegressor(max_depth=depth, random_state=0), None
    for k in (1, 5, 15):
        yield f"{k} neighbours, unscaled", KNeighborsRegressor(k), None
        yield f"{k} neighbours, scaled", make_pipeline(StandardScaler(), KNeighborsRegressor(k)), None
    for alpha in (1.0, 30.0, 300.0, 3000.0):
        yield f"ridge, alpha={alpha}", make_pipeline(StandardScaler(), Ridge(alpha)), None
    yield "support vectors", make_pipeline(StandardScaler(), SVR(C=10)), None
    for n in (3, 10, 100):
        yield f"forest of {n}", RandomForestRegressor(n, random_state=0), None
    yield "100 extra trees", ExtraTreesRegressor(100, random_state=0), None
    for n in (20, 100):
        yield f"{n} boosted trees", GradientBoostingRegressor(n_estimators=n, random_state=0), None


def text_classifiers() -> Iterator[Entry]:
    """Programs that read a name."""
    yield "commonest class", None, None
    for analyzer, ranges in (
        ("word", [(1, 1), (1, 2)]),
        ("char", [(1, 1), (1, 2), (1, 3), (2, 3)]),
        ("char_wb", [(1, 2), (1, 3), (1, 4)]),
    ):
        for grams in ranges:
            for rare in (1, 3):
                name = f"{analyzer} {grams[0]}-{grams[1]}, seen {rare} times"
                yield (
                    f"naive Bayes, {name}",
                    make_pipeline(CountVectorizer(analyzer=analyzer, ngram_range=grams, min_df=rare), MultinomialNB()),
                    None,
                )
                vectors = TfidfVectorizer(analyzer=analyzer, ngram_range=grams, min_df=rare)
                yield f"logistic regression, {name}", make_pipeline(vectors, LogisticRegression(max_iter=300)), None
    for size in (5, 20, 80):
        yield (
            f"logistic regression, {size} words",
            make_pipeline(CountVectorizer(max_features=size), LogisticRegression(max_iter=300)),
            None,
        )
    for depth in (2, 5, 15):
        yield (
            f"tree of depth {depth} on words",
            make_pipeline(CountVectorizer(), DecisionTreeClassifier(max_depth=depth, random_state=0)),
            None,
        )
    yield (
        "support vectors, char_wb 1-3",
        make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)), SVC(kernel="linear")),
        None,
    )


def features(competition: Competition, table: pd.DataFrame, side: str) -> pd.DataFrame | pd.Series[str]:
    """What the programs see of one side."""
    folder = competition.public_dir
    if competition.domain == "image":
        # an 8x8 grey PNG as our recipe writes it: 64 bytes of pixels in stored lines of 1 + 8 bytes
        lines = [np.frombuffer((folder / side / f"{row}.png").read_bytes()[48:120], dtype=np.uint8) for row in table["id"]]
        pixels = np.stack(lines).reshape(len(lines), 8, 9)[:, :, 1:].reshape(len(lines), 64)
        return pd.DataFrame(pixels.astype(float), columns=[f"p{number}" for number in range(64)])
    if competition.domain == "text":
        return table["name"]
    if competition.domain == "time series":
        day = pd.to_datetime(table["date"])
        angle = day.dt.day_of_year * (2 * np.pi / 365.25)
        frame = pd.DataFrame(
            {
                "month": day.dt.month,
                "wind": table["wind"],
                "rain": table["precipitation"],
                "cos": np.cos(angle),
                "sin": np.sin(angle),
            }
        )
        for kind in ("drizzle", "fog", "rain", "snow", "sun"):
            frame[f"is_{kind}"] = (table["weather"] == kind).astype(float)
        return frame
    known = {"id", "grower", *competition.submission.columns}
    return table[[column for column in table.columns if column not in known]]


def play(competition: Competition) -> list[tuple[str, float, float]]:
    """(entry, private score, public score) of each program."""
    train = pd.read_csv(competition.public_dir / "train.csv")
    test = pd.read_csv(competition.public_dir / "test.csv")
    answers = pd.read_csv(competition.private_dir / "answers.csv").set_index("id").loc[test["id"]]
    targets = list(competition.submission.columns)
    label = "grower" if "grower" in train.columns else targets[0]
    x, unseen, y = features(competition, train, "train"), features(competition, test, "test"), train[label]
    public = np.array([competition.split.is_public(row) for row in test["id"]])
    truth = answers[targets[0]].to_numpy() if len(targets) == 1 else answers[targets].to_numpy()
    numbers = competition.metric == "rmse"
    if competition.domain == "text":
        entries = list(text_classifiers())
    else:
        entries = list((regressors if numbers else classifiers)(_useful(x)))
    results = []
    for name, model, few in entries:
        if model is None:
            guess = _blind(competition, y, len(test))
        else:
            model.fit(x if few is None else x[few], y)
            seen = unseen if few is None else unseen[few]
            if competition.metric in ("roc_auc", "log_loss"):
                guess = model.predict_proba(seen)
                guess = guess[:, 1] if competition.metric == "roc_auc" else guess
            else:
                guess = model.predict(seen)
        private_score, public_score = (
            round(competition.scorer(truth[rows], guess[rows]), competition.decimals) for rows in (~public, public)
        )
        results.append((name, private_score, public_score))
    return results


def _useful(x: pd.DataFrame) -> list[str]:
    """The columns, of images the most changing ones first."""
    return list(x.var().sort_values(ascending=False, kind="stable").index) if "p63" in x.columns else list(x.columns)


def _blind(competition: Competition, y: pd.Series[Any], rows: int) -> Any:
    if competition.metric == "rmse":
        return np.full(rows, y.mean())
    if competition.metric == "roc_auc":
        return np.full(rows, 0.5)
    if competition.metric == "log_loss":
        return np.tile(y.value_counts(normalize=True).sort_index().to_numpy(), (rows, 1))
    return np.full(rows, y.mode()[0])


def write_board(path: Path, rows: list[tuple[str, float]], better: str) -> None:
    """rank,score,entry, best first."""
    rows = sorted(rows, key=lambda row: (-row[1] if better == "higher" else row[1], row[0]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "score", "entry"])
        writer.writerows([rank, score, entry] for rank, (entry, score) in enumerate(rows, start=1))


def main() -> None:
    """The boards of the named competitions, or of all."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    for competition in catalogue():
        if sys.argv[1:] and competition.slug not in sys.argv[1:]:
            continue
        prepare(competition)
        results = play(competition)
        write_board(
            competition.folder / "reference_board.csv", [(entry, private) for entry, private, _ in results], competition.better
        )
        write_board(
            competition.folder / "reference_public_board.csv",
            [(entry, public) for entry, _, public in results],
            competition.better,
        )
        scores = sorted(private for _, private, _ in results)
        print(f"{competition.slug}: {len(scores)} entries, {scores[0]} .. {scores[len(scores) // 2]} .. {scores[-1]}", flush=True)


if __name__ == "__main__":
    main()
