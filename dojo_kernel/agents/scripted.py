"""The baseline: look at the data, a constant, a simple model, a tuned one, a blend. No model is called.

It knows what `request_info` tells it and nothing else. Each cell is tried on a few rows in a scratch kernel first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dojo_kernel.actions import ExecuteCode, RequestInfo, ValidateCode
from dojo_kernel.agents.agent import AGENTS
from dojo_kernel.records import Turn

if TYPE_CHECKING:
    from dojo_kernel.records import Observation

_CHANCE_METRICS = {"roc_auc", "log_loss", "brier", "average_precision"}
_SCORERS = {
    "roc_auc": "roc_auc", "accuracy": "accuracy", "f1_macro": "f1_macro", "log_loss": "neg_log_loss",
    "mae": "neg_mean_absolute_error", "rmse": "neg_root_mean_squared_error",
}  # fmt: skip

_COUNT = 5
"""Ideas there are; without the first, the look at the data, the others are worth nothing."""

_LOOK = '''# Look at the data
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
DATA = Path({data!r})
ID, COLUMNS = {id!r}, {columns!r}
CLASSIFY, CHANCES = {classify!r}, {chances!r}

train = pd.read_csv(DATA / "train.csv", dtype={{ID: str}})
test = pd.read_csv(DATA / "test.csv", dtype={{ID: str}})
hidden = [name for name in train.columns if name not in test.columns]
target = COLUMNS[0] if COLUMNS[0] in train.columns else hidden[-1]
y = train[target].astype(str) if CLASSIFY and len(COLUMNS) > 1 else train[target]


def submit(prediction):
    """Write submission.csv in the columns of the sample; the file lands in the workspace, where the kernel runs."""
    table = pd.DataFrame(np.asarray(prediction).reshape(len(test), -1), columns=COLUMNS)
    table.insert(0, ID, test[ID].to_numpy())
    table.to_csv("submission.csv", index=False)
    return table.head(3)


print(len(train), "train rows,", len(test), "test rows; target:", target)
print(train.describe(include="all").T.iloc[:, :8].to_string(max_rows=20))
'''
_FEW_ROWS = """
# A few rows are enough to see whether the cell works
train = train.sample(min(len(train), 200), random_state=0)
y = y[train.index]

"""
_CONSTANT = """# A constant: what can be had without looking at a single feature
if CHANCES and len(COLUMNS) > 1:
    constant = y.value_counts(normalize=True).reindex(COLUMNS).fillna(0).to_numpy()
elif CLASSIFY and not CHANCES:
    constant = [y.mode()[0]]
else:
    constant = [y.mean()]
submit(np.tile(constant, (len(test), 1)))
"""
_FEATURES = r'''# Features: numbers as they are, dates as calendar, words as TF-IDF, pictures as pixels
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline


def expand(frame, folder):
    table = frame[[name for name in test.columns if name != ID]].copy()
    for name in [name for name in table if "date" in name.lower()]:
        date = pd.to_datetime(table.pop(name))
        angle = 2 * np.pi * date.dt.dayofyear / 365.25
        table["year"], table["month"], table["weekday"] = date.dt.year, date.dt.month, date.dt.weekday
        table["sine"], table["cosine"] = np.sin(angle), np.cos(angle)
    if (DATA / folder).is_dir():
        import matplotlib.image as images
        pixels = [np.atleast_2d(images.imread(DATA / folder / f"{name}.png")).ravel() for name in frame[ID]]
        extra = pd.DataFrame(np.array(pixels), index=table.index).add_prefix("pixel_")
        table = pd.concat([table, extra], axis=1)
    return table


X, X_test = expand(train, "train"), expand(test, "test")
numbers = list(X.select_dtypes("number").columns)
texts = [name for name in X if name not in numbers and X[name].nunique() > 50]
kinds = [name for name in X if name not in numbers and name not in texts]
prepare = make_column_transformer(
    (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
    (OneHotEncoder(handle_unknown="ignore"), kinds),
    *[(TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True), name) for name in texts],
    *[(TfidfVectorizer(token_pattern=r"(?u)\S+"), name) for name in texts],
    sparse_threshold=1.0,
)
print(X.shape, "numbers:", len(numbers), "kinds:", len(kinds), "texts:", len(texts))


def predict(model, table):
    """What the submission wants: chances, labels or amounts."""
    if not CHANCES:
        return model.predict(table)
    chances = model.predict_proba(table)
    if len(COLUMNS) == 1:
        return chances[:, 1]
    return pd.DataFrame(chances, columns=list(map(str, model.classes_))).reindex(columns=COLUMNS).fillna(0).to_numpy()

'''
_SIMPLE = """# A simple model: linear
from sklearn.linear_model import LogisticRegression, Ridge

simple = make_pipeline(prepare, LogisticRegression(max_iter=2000) if CLASSIFY else Ridge())
simple.fit(X, y)
submit(predict(simple, X_test))
"""
_TUNED = """# Tuned: the strength of several families, by cross-validation
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.svm import SVC, SVR

if CLASSIFY:
    candidates = [LogisticRegression(C=c, max_iter=2000) for c in (0.1, 10.0)]
    candidates += [ExtraTreesClassifier(100, random_state=0)]
    candidates += [SVC(C=c, probability=CHANCES, random_state=0) for c in (1.0, 10.0)]
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
else:
    candidates = [Ridge(alpha=a) for a in (1.0, 10.0, 100.0)]
    candidates += [ExtraTreesRegressor(100, min_samples_leaf=leaf, random_state=0) for leaf in (1, 5)]
    candidates += [SVR(C=c * y.std()) for c in (0.3, 1.0)]
    folds = KFold(3, shuffle=True, random_state=0)
tried = []
for candidate in candidates:
    model = make_pipeline(clone(prepare), candidate)
    tried.append((cross_val_score(model, X, y, cv=folds, scoring={scoring!r}).mean(), model))
    print(f"{{tried[-1][0]:10.4f}}  {{candidate}}")
tried.sort(key=lambda pair: pair[0], reverse=True)
submit(predict(tried[0][1].fit(X, y), X_test))
"""
_BLEND = """# A blend of the best three
from sklearn.ensemble import VotingClassifier, VotingRegressor

best = [(f"m{{number}}", model) for number, (_, model) in enumerate(tried[:3])]
blend = (VotingClassifier(best, voting="soft" if CHANCES else "hard") if CLASSIFY else VotingRegressor(best)).fit(X, y)
submit(predict(blend, X_test))
"""


@dataclass(frozen=True)
class _Idea:
    """One cell, and what is said before it."""

    said: str
    code: str


@AGENTS.register("scripted")
class ScriptedAgent:
    """Plays the same few ideas in every competition; an idea that fails on a few rows is dropped."""

    name = "scripted"
    trusted = True

    def __init__(self) -> None:
        self._ideas: list[_Idea] | None = None
        self._asked = False
        self._trying = False
        self._ran: list[str] = []

    async def act(self, observation: Observation) -> Turn:
        """Ask once, then try and run one idea after the other."""
        if not self._asked:
            self._asked = True
            return Turn(action=RequestInfo(info_type="all"), said="What is this competition about?")
        if self._ideas is None:
            if not observation.ok:
                return Turn(action=None, said="Nothing is known about this competition.")
            self._ideas = _ideas(observation.text)
        elif self._trying and not observation.ok:
            self._trying = False
            self._ideas.pop(0)
        if not self._ideas or (not self._ran and len(self._ideas) < _COUNT):
            return Turn(action=None, said="Nothing more to try.")
        idea = self._ideas[0]
        if not self._trying and observation.steps_left > len(self._ideas):
            self._trying = True
            return Turn(action=ValidateCode(code=self._trial(idea)), said=f"{idea.said} A trial first.")
        self._trying = False
        self._ideas.pop(0)
        self._ran.append(idea.code)
        return Turn(action=ExecuteCode(code=idea.code), said=idea.said)

    def _trial(self, idea: _Idea) -> str:
        """The idea as a cell of its own: a scratch kernel knows nothing of what ran before."""
        if not self._ran:
            return idea.code
        return "\n".join([self._ran[0] + _FEW_ROWS, *self._ran[1:], idea.code])


def _section(text: str, name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=\n\n## |\n\[left\]|\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""


def _ideas(text: str) -> list[_Idea]:
    about = json.loads(_section(text, "metadata"))
    kinds = list(about["prediction_columns"].values())
    chances = about["metric"] in _CHANCE_METRICS
    classify = chances or kinds[0] != "float"
    facts = {
        "data": _section(text, "data_path"),
        "id": about["id_column"],
        "columns": list(about["prediction_columns"]),
        "classify": classify,
        "chances": chances,
        "scoring": _SCORERS.get(about["metric"], "accuracy" if classify else "neg_root_mean_squared_error"),
    }
    return [
        _Idea("I look at the data.", _LOOK.format(**facts)),
        _Idea("A constant shows what a score is worth.", _CONSTANT),
        _Idea("Now features and a linear model.", _FEATURES + _SIMPLE),
        _Idea("Now several families of models, tuned by cross-validation.", _TUNED.format(**facts)),
        _Idea("Last, a blend of the best three.", _BLEND.format()),
    ]
