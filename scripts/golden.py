"""Play the golden runs once more and write their notebooks: python scripts/golden.py [process|sandbox|docker].

Only after a change that is meant to change them. Cells use numpy and plain Python in ways that come out the same everywhere.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import find
from dojo_kernel.episode import open_episode
from dojo_kernel.settings import EpisodeSettings, KernelSettings

GOLDEN = Path(__file__).parents[1] / "notebooks" / "golden"

LOAD = """\
import csv
import os
import numpy as np

def load(name):
    with open(os.path.join(os.environ["DOJO_DATA_DIR"], name)) as lines:
        return list(csv.DictReader(lines))

def matrix(rows, names):
    return np.array([[float(row[name]) for name in names] for row in rows])

def submit(names, table):
    with open("submission.csv", "w") as file:
        print("id", *names, sep=",", file=file)
        for row, values in zip(test, table):
            print(row["id"], *(f"{value:.6f}" for value in values), sep=",", file=file)

train, test = load("train.csv"), load("test.csv")
"""

BREAST_CANCER = (
    ("Which columns?", {"name": "request_info", "info_type": "sample_submission"}),
    ("Try to read the files first.", {"name": "validate_code", "code": LOAD + "print(len(train), len(test))"}),
    (None, {"name": "execute_code", "code": LOAD + "names = list(test[0])[1:]\nlen(train), len(test), len(names)"}),
    ("A column that is not there.", {"name": "execute_code", "code": "matrix(train, ['radius'])"}),
    ("One feature.", {"name": "execute_code", "code": 'submit(["benign"], 1 - matrix(test, ["mean_radius"]) / 100)'}),
    (
        "The sum of all that is larger in malignant ones.",
        {
            "name": "execute_code",
            "code": """\
X, X_test = matrix(train, names), matrix(test, names)
y = matrix(train, ["benign"])[:, 0]
mean, spread = X.mean(axis=0), X.std(axis=0)
weight = ((X - mean) / spread * (y - y.mean())[:, None]).mean(axis=0)
print("strongest:", names[int(np.abs(weight).argmax())], round(float(np.abs(weight).max()), 4))
z = ((X_test - mean) / spread) @ weight
submit(["benign"], 1 / (1 + np.exp(-z[:, None])))
""",
        },
    ),
)

WINE = (
    ("Load, and keep the features in a file.", {"name": "execute_code", "code": LOAD + """\
names = [name for name in test[0] if name != "id"]
growers = sorted({row["grower"] for row in train})
np.save("features.npy", matrix(train, names))
print(growers, [sum(row["grower"] == one for row in train) for one in growers])
"""}),
    ("Chances of each grower without looking.", {"name": "execute_code", "code": """\
shares = [sum(row["grower"] == one for row in train) / len(train) for one in growers]
submit(growers, [shares] * len(test))
"""}),
    ("A clean start.", {"name": "reset"}),
    ("Memory is gone.", {"name": "execute_code", "code": "growers"}),
    ("Files are kept. Naive Bayes by hand.", {"name": "execute_code", "code": LOAD + """\
names = [name for name in test[0] if name != "id"]
growers = sorted({row["grower"] for row in train})
X, X_test = np.load("features.npy"), matrix(test, names)
labels = np.array([row["grower"] for row in train])
logs = []
for one in growers:
    part = X[labels == one]
    mean, spread = part.mean(axis=0), part.std(axis=0)
    logs.append(np.log(len(part)) - np.log(spread).sum() - (((X_test - mean) / spread) ** 2).sum(axis=1) / 2)
logs = np.array(logs).T
chances = np.exp(logs - logs.max(axis=1, keepdims=True))
chances = 0.98 * chances / chances.sum(axis=1, keepdims=True) + 0.02 / 3
print(np.bincount(chances.argmax(axis=1)).tolist())
submit(growers, chances)
"""}),
)  # fmt: skip

DIABETES = (
    ("Something to lose.", {"name": "execute_code", "code": "kept = 41"}),
    ("Too slow.", {"name": "execute_code", "code": "import time\ntime.sleep(600)", "timeout_s": 2}),
    ("An interrupted kernel keeps its memory.", {"name": "execute_code", "code": "kept + 1"}),
    ("The end of the kernel.", {"name": "execute_code", "code": "import os\nos._exit(3)"}),
    ("A new kernel has none of it.", {"name": "execute_code", "code": "print('kept' in globals())"}),
    ("Least squares.", {"name": "execute_code", "code": LOAD + """\
names = [name for name in test[0] if name != "id"]
X, X_test = matrix(train, names), matrix(test, names)
mean, spread = X.mean(axis=0), X.std(axis=0)
design = lambda table: np.hstack([np.ones((len(table), 1)), (table - mean) / spread])
y = matrix(train, ["progression"])
weight = np.linalg.solve(design(X).T @ design(X) + np.eye(11), design(X).T @ y)
print([round(float(one), 2) for one in weight[:4, 0]])
submit(["progression"], design(X_test) @ weight)
"""}),
)  # fmt: skip

RUNS = {"breast-cancer": BREAST_CANCER, "wine": WINE, "diabetes": DIABETES}


async def play(slug: str, box: str) -> None:
    """One run, from its first step to its notebook."""
    spec = find(slug)
    prepare(spec)
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        settings = EpisodeSettings(max_steps=len(RUNS[slug]))
        kernel = KernelSettings.model_validate({"box": box})
        async with open_episode(slug, settings=settings, kernel=kernel, folder=Path(folder) / "run", agent="golden") as episode:
            for said, action in RUNS[slug]:
                await episode.step(action, said=said)
        target = episode.save_notebook(GOLDEN / f"{slug}.ipynb")
        print(f"{target}: {target.stat().st_size} bytes, final {episode.state.final}")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for competition in RUNS:
        asyncio.run(play(competition, sys.argv[1] if len(sys.argv) > 1 else "process"))
