"""Jupyter's own conformance suite on the installed kernelspecs."""

import unittest

import jupyter_kernel_test
import pytest


class Conformance(jupyter_kernel_test.KernelTests):
    """What every kind of box must answer."""

    __test__ = False
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_generate_error = "raise ValueError"
    code_execute_result = ({"code": "6 * 7", "result": "42"},)
    code_display_data = ({"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},)
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello')")
    incomplete_code_samples = ("print('''hello",)
    invalid_code_samples = ("import = 7q",)
    code_inspect_sample = "zip"


@pytest.mark.docker
class DockerKernelTests(Conformance):
    __test__ = True
    kernel_name = "dojo-docker"


@pytest.mark.sandbox
class SandboxKernelTests(Conformance):
    __test__ = True
    kernel_name = "dojo-sandbox"


assert issubclass(Conformance, unittest.TestCase)
