"""Parent and child go on computing after a fork, with every library that keeps threads or processes of its own."""

import asyncio
import os
import subprocess

import pytest
import pytest_asyncio
from boxes import BOXES_IN_CI, anew, lasting, printed, went_well

from dojo_kernel.records import Display, Limits

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(600)]
FORKS = 50
CELL_S = 60
IMAGE = "dojo-kernel:test"

BEFORE = """
import hashlib, os, threading
os.environ['OMP_WAIT_POLICY'] = 'passive'  # the tests share their processors: who waits shall not spin
import numpy as np
def ran():
    found = {}
    for tid in os.listdir('/proc/self/task'):
        try: found[tid] = int(open(f'/proc/self/task/{tid}/schedstat').read().split()[0])
        except OSError: pass  # it has just ended
    return found
def shared():
    # what compute() gives, and whether another thread had a part in it
    before = ran()
    answer = compute()
    most = max(after - before.get(tid, 0) for tid, after in ran().items() if int(tid) != os.getpid())
    return answer, most > 300_000  # nanoseconds on a processor
def digest(*arrays):
    return hashlib.sha256(b''.join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]
rng = np.random.default_rng(0)
X = rng.normal(size=(1000, 10)); y = X[:, 0] * 2 + np.sin(X[:, 1]) + rng.normal(size=1000) * 0.1
"""
# Each defines compute(), whose answer is the same each time.
LIBRARIES = {
    "numpy": """
A = rng.normal(size=(400, 400))
def compute():
    return digest(A @ A, np.linalg.inv(A))
""",
    "sklearn": """
from sklearn.ensemble import HistGradientBoostingRegressor
def compute():
    return digest(HistGradientBoostingRegressor(max_iter=3, random_state=0).fit(X, y).predict(X))
""",
    "lightgbm": """
import lightgbm
def compute():
    settings = {'objective': 'regression', 'verbosity': -1, 'deterministic': True, 'force_row_wise': True, 'num_threads': 2}
    return digest(lightgbm.train(settings, lightgbm.Dataset(X, y), num_boost_round=3).predict(X))
""",
    "xgboost": """
import xgboost
def compute():
    return digest(xgboost.train({'nthread': 2, 'tree_method': 'hist'}, xgboost.DMatrix(X, y), num_boost_round=3).predict(xgboost.DMatrix(X)))
""",
    "torch": """
import torch
inputs, wanted = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
def compute():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(10, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = ((net(inputs)[:, 0] - wanted) ** 2).mean()
        loss.backward()
        optimizer.step()
    return digest(net(inputs).detach().numpy())
""",
}
EXTRA = {"lightgbm", "xgboost", "torch"}


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BOXES_IN_CI)
async def shared(request, tmp_path_factory):
    if (
        request.param == "docker"
        and subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode
    ):
        (pytest.fail if "docker" in os.environ.get("DOJO_REQUIRE", "") else pytest.skip)(f"no image {IMAGE}: make image TEST=1")
    async with lasting(request.param, tmp_path_factory, limits=Limits(cpus=2, memory_gb=2, pids=512), image=IMAGE) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared):
    return await anew(shared)


async def tried(kernel, code):
    execution = await kernel.validate(code, CELL_S)
    assert execution.forked, execution.notes
    assert execution.status == "ok", execution
    return execution


async def need(kernel, *modules):
    asked = f"import importlib.util\nprint([name for name in {modules!r} if importlib.util.find_spec(name) is None])"
    missing = await went_well(kernel, asked)
    if missing != "[]\n":
        how = "make image TEST=1" if kernel.box == "docker" else "make test"
        pytest.skip(f"not in this box: {missing.strip()}; {how} installs what pip finds")


@pytest.mark.endurance
@pytest.mark.parametrize("name", LIBRARIES)
async def test_parent_and_child_go_on_computing(kernel, name):
    await need(kernel, *({name} & EXTRA))
    await went_well(kernel, BEFORE + LIBRARIES[name])
    answer, helped = (await went_well(kernel, "print(*shared())")).split()
    assert helped == "True", "the library works with more than one thread here, or this test shows nothing"
    for number in range(FORKS):
        said = printed(await tried(kernel, "print(*shared())"))
        assert said == f"{answer} True\n", number
        if number % 5 == 0:
            assert await went_well(kernel, "print(compute())") == f"{answer}\n", number


@pytest.mark.endurance
async def test_every_runtime_in_one_kernel_computes_on_both_sides(kernel):
    await need(kernel, *sorted(EXTRA))
    together = (
        BEFORE + "computes = []\n" + "".join(f"{code}\ncomputes.append(compute)\n" for code in reversed(LIBRARIES.values()))
    )
    await went_well(kernel, together)
    ask = "print(*[compute() for compute in computes])"
    answer = await went_well(kernel, ask)
    runtimes = "import re\nprint(len(set(re.findall(r'/\\S*/lib[gi]?omp[^/\\s]*\\.so\\S*', open('/proc/self/maps').read()))))"
    assert int(await went_well(kernel, runtimes)) > 1, "each library brings its own OpenMP"
    for number in range(FORKS):
        which = number % len(LIBRARIES)  # each is the first to compute in some children
        first = f"computes = computes[{which}:] + computes[:{which}]\n"
        said = printed(await tried(kernel, ask if number % 5 == 0 else first + "print(computes[0]())")).split()
        assert said == (answer.split() if number % 5 == 0 else answer.split()[which : which + 1]), number
        if number % 5 == 0:
            assert await went_well(kernel, ask) == answer, number


@pytest.mark.endurance
async def test_joblib_threads_work_on_both_sides(kernel):
    await went_well(
        kernel,
        BEFORE
        + """
import joblib
from sklearn.ensemble import RandomForestRegressor
def which(number):
    barrier.wait(20)
    return threading.get_ident()
def compute():
    global barrier
    barrier = threading.Barrier(2)  # passed by two at once only
    idents = joblib.Parallel(n_jobs=2, backend='threading')(joblib.delayed(which)(n) for n in range(2))
    assert len(set(idents)) == 2
    return digest(RandomForestRegressor(n_estimators=2, n_jobs=2, random_state=0).fit(X, y).predict(X[:200]).round(9))
""",
    )
    answer = await went_well(kernel, "print(compute())")
    for number in range(FORKS):
        assert printed(await tried(kernel, "print(compute())")) == answer, number
        if number % 5 == 0:
            assert await went_well(kernel, "print(compute())") == answer, number


LOKY = """
import joblib, joblib.externals.loky.reusable_executor, os
def compute():
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(lambda n: (os.getpid(), sum(range(n))))(20000 + n) for n in range(8))
    assert os.getpid() not in {pid for pid, _ in found}
    return sum(total for _, total in found), sorted(joblib.externals.loky.reusable_executor._executor._processes)
"""


@pytest.mark.endurance
async def test_joblib_workers_are_not_shared_by_a_fork(kernel):
    await went_well(kernel, LOKY)
    total, parents = eval(await went_well(kernel, "print(compute())"))
    for number in range(FORKS):
        if number % 10:  # starting workers takes seconds; every tenth child does
            assert printed(await tried(kernel, "print(1)")) == "1\n"
            continue
        execution = await tried(kernel, "print(compute())")
        mine, childs = eval(printed(execution))
        assert mine == total
        assert not set(childs) & set(parents), "workers of its own"
        again, still = eval(await went_well(kernel, "print(compute())"))
        assert (again, still) == (total, parents), "the parent's pool lives"


@pytest.mark.endurance
async def test_figures_stay_open_and_show_on_both_sides(kernel):
    await went_well(
        kernel,
        """
import io, hashlib, matplotlib.pyplot as plt
get_ipython().run_line_magic('config', 'InlineBackend.close_figures = False')
figure, axes = plt.subplots(figsize=(3, 2)); _ = axes.plot([1, 3, 2])
def compute():
    buffer = io.BytesIO(); figure.savefig(buffer, format='png', metadata={'Software': None})
    return hashlib.sha256(buffer.getvalue()).hexdigest()
""",
    )
    answer = await went_well(kernel, "print(compute())")
    for number in range(FORKS):
        show = "; plt.show()" if number % 5 == 0 else ""
        execution = await tried(kernel, f"print(compute()); assert plt.gcf() is figure; plt.title('mine'){show}")
        assert printed(execution) == answer, number
        shown = any(isinstance(output, Display) and "image/png" in output.data for output in execution.outputs)
        assert shown or not show, execution
        if number % 5 == 0:
            assert await went_well(kernel, "print(compute())") == answer, "the child's title is the child's"


async def test_branches_compute_side_by_side(kernel):
    await went_well(kernel, BEFORE + LIBRARIES["sklearn"])
    answer = await went_well(kernel, "print(compute())")
    branches = await kernel.branch(4)
    try:
        for _ in range(3):
            said = await asyncio.gather(*(went_well(one, "print(compute())") for one in (kernel, *branches)))
            assert set(said) == {answer}
    finally:
        for one in branches:
            await one.close()
