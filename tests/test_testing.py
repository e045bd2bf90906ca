"""The public double keeps the promises of the real kernel, as far as a game can see them."""

import pytest

from dojo_kernel.errors import ForkRefusedError
from dojo_kernel.kernel import open_kernel
from dojo_kernel.settings import KernelSettings
from dojo_kernel.testing import open_memory_kernel


@pytest.fixture(params=["memory", "process"])
async def kernel(request, tmp_path):
    start = open_memory_kernel if request.param == "memory" else open_kernel
    one = await start(KernelSettings(box="process", max_checkpoints=2), data_dir=tmp_path, episode="double")
    await run(one, "from pathlib import Path\nif 'WORKSPACE' not in globals(): WORKSPACE = Path('.')")
    yield one
    await one.close()
    await one.close()


async def run(kernel, code):
    execution = await kernel.execute(code, 60)
    assert execution.status == "ok", execution
    return "".join(one.text for one in execution.outputs if one.output_type == "stream")


def printed(execution):
    return "".join(one.text for one in execution.outputs if one.output_type == "stream")


async def test_a_trial_sees_the_live_names_and_changes_neither_them_nor_a_file(kernel):
    await run(kernel, "x = [1]; y = x; _ = (WORKSPACE / 'a').write_text('old')\ndef grow(): x.append(3)")
    code = "x.append(2); grow(); (WORKSPACE / 'a').write_text('newer'); (WORKSPACE / 'b').write_text(''); print(x, y is x)"
    trial = await kernel.validate(code, 60)
    assert (trial.status, trial.where, trial.forked, printed(trial)) == ("ok", "scratch", True, "[1, 2, 3] True\n")
    assert any("would have written: a (5 bytes), b (0 bytes)" in note for note in trial.notes), trial.notes
    assert await run(kernel, "print(x, (WORKSPACE / 'a').read_text(), (WORKSPACE / 'b').exists())") == "[1] old False\n"


async def test_a_trial_in_an_empty_kernel_sees_no_name_and_a_wrong_syntax_is_not_run(kernel):
    await run(kernel, "x = 1")
    fresh = await kernel.validate("x", 60, state="fresh")
    assert (fresh.status, fresh.forked, fresh.outputs[0].ename) == ("error", False, "NameError")
    wrong = await kernel.validate("(", 60)
    assert (wrong.status, wrong.forked, wrong.execution_count, wrong.outputs[0].ename) == ("error", False, None, "SyntaxError")


async def test_a_checkpoint_is_gone_back_to_more_than_once(kernel):
    await run(kernel, "x = [1]; _ = (WORKSPACE / 'a').write_text('old')")
    made = await kernel.checkpoint("here")
    assert (made.id, made.label, made.lost, made.evicted) == ("c1", "here", (), ())
    for _ in range(2):
        life = kernel.life
        await run(kernel, "x.append(2); _ = (WORKSPACE / 'a').write_text('new'); (WORKSPACE / 'b').touch()")
        assert await kernel.restore("c1") == ()
        assert kernel.life == life + 1
        assert await run(kernel, "print(x, (WORKSPACE / 'a').read_text(), (WORKSPACE / 'b').exists())") == "[1] old False\n"
    with pytest.raises(KeyError):
        await kernel.restore("c9")
    assert await kernel.evict_checkpoints() == ()


async def test_one_checkpoint_too_many_turns_the_oldest_into_a_file(kernel):
    await run(kernel, "x = 1; numbers = [1, 2]")
    await kernel.checkpoint("")
    await kernel.checkpoint("")
    assert (await kernel.checkpoint("")).evicted == ("c1",)
    await run(kernel, "x = 2")
    assert await kernel.restore("c1") == ()
    assert await run(kernel, "print(x, numbers)") == "1 [1, 2]\n"


async def test_branches_have_names_and_files_of_their_own_and_are_closed_alone(kernel):
    await run(kernel, "x = [0]; _ = (WORKSPACE / 'submission.csv').write_text('root')")
    first, second = await kernel.branch(2, seeds=[1, 2])
    assert len({one.workspace_path for one in (kernel, first, second)}) == 3
    await run(first, "x.append(1); _ = (WORKSPACE / 'submission.csv').write_text('first')")
    assert await run(second, "print(x)") == "[0]\n"
    assert await first.read_submission("submission.csv", 100) == b"first"
    assert await second.read_submission("submission.csv", 100) == b"root"
    with pytest.raises(KeyError):
        await first.restore("c1")
    await first.close()
    await second.checkpoint("mine")
    assert await run(second, "print(x)") == "[0]\n"
    await second.close()
    assert await run(kernel, "print(x, (WORKSPACE / 'submission.csv').read_text())") == "[0] root\n"


async def test_a_memory_kernel_refuses_what_it_cannot_copy_and_leaves_nothing(tmp_path):
    kernel = await open_memory_kernel(KernelSettings(), data_dir=tmp_path, episode="double")
    await kernel.execute("numbers = (i for i in [1])", 1)
    for fork in (kernel.checkpoint(""), kernel.branch(2)):
        with pytest.raises(ForkRefusedError, match="numbers, a generator"):
            await fork
    assert (await kernel.validate("1", 1)).notes == ("Tried in an empty kernel: numbers, a generator, cannot be copied.",)
    await kernel.close()
