"""Compiling for a GPU that is not here: what comes out, which mistakes are explained, what the cache keeps."""

import gzip
import importlib.util
import re
import textwrap

import pytest

from llmsys.hardware import compiler
from llmsys.hardware.compiler import Build, Compiled, CompileError, Source, compile_kernel, compile_kernels
from llmsys.hardware.kernel_source import source_of, texts_of
from llmsys.hardware.tier import load_triton
from tests.hardware.fresh import run_fresh

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
if importlib.util.find_spec("triton"):
    triton, tl = load_triton()

PRODUCT = Source(
    textwrap.dedent("""
        import triton
        import triton.language as tl

        @triton.jit
        def product(a_ptr, b_ptr, c_ptr, stride, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr = 64):
            m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
            a = tl.load(a_ptr + m[:, None] * stride + k[None, :])
            b = tl.load(b_ptr + n[None, :] * stride + k[:, None])
            tl.store(c_ptr + m[:, None] * stride + n[None, :], tl.dot(a, b))
    """),
    "product",
)
POINTERS = {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32", "stride": "i32:16"}
BROKEN = Source(PRODUCT.text.replace("tl.dot(a, b)", "tl.dot(a, tl.load(c_ptr))"), "product")
ABORTS = Source("import os\nos.abort()\n", "product")
NESTED = Source(
    textwrap.dedent("""
        import triton
        import triton.language as tl

        @triton.jit
        def outer(x_ptr, y_ptr):
            tl.store(y_ptr, inner(tl.load(x_ptr)))

        @triton.jit
        def inner(x):
            return x + tl.arange(0, 3)
    """),
    "outer",
)
GLUON = Source(
    textwrap.dedent("""
        from triton.experimental import gluon
        from triton.experimental.gluon import language as gl

        @gluon.jit
        def copy(x_ptr, y_ptr, N: gl.constexpr):
            layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
            at = gl.arange(0, N, layout)
            gl.store(y_ptr + at, gl.load(x_ptr + at))
    """),
    "copy",
)

SCALE = 2
if importlib.util.find_spec("triton"):
    HALF = tl.constexpr(0.5)

    @triton.jit
    def _helped(x, N: tl.constexpr):
        return _doubled(x) * N

    @triton.jit
    def _doubled(x):
        return x + x + HALF

    @triton.jit
    def uses_helpers(x_ptr, N: tl.constexpr):
        at = x_ptr + tl.arange(0, N)
        tl.store(at, _helped(tl.load(at), N))


WITHOUT_JIT = Source(PRODUCT.text.replace("@triton.jit", ""), "product")
TWO_POINTERS = {"x_ptr": "*fp32", "y_ptr": "*fp32"}
MISTAKES = {  # what the error says -> the build
    "constants must have N": Build(PRODUCT, POINTERS, {"M": 16}),
    "signature must have stride": Build(PRODUCT, {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32"}, {}),
    "product has no argument d_ptr; it has a_ptr": Build(PRODUCT, POINTERS | {"d_ptr": "i32"}, {"M": 1, "N": 1}),
    "@triton.jit is missing": Build(WITHOUT_JIT, POINTERS, {"M": 16, "N": 16}),
    "other cannot be had from its text: AttributeError": Build(Source(PRODUCT.text, "other"), POINTERS, {}),
    "line 2 of inner: return x + tl.arange(0, 3)": Build(NESTED, TWO_POINTERS, {}),
    "arange's range must be a power of 2": Build(PRODUCT, POINTERS, {"M": 17, "N": 16}),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def results(cache):
    """Several kernels, good and bad, through one call."""
    builds = {
        "small": Build(PRODUCT, POINTERS, {"M": 64, "N": 64}),
        "fp32": Build(PRODUCT, POINTERS | {"a_ptr": "*fp32", "b_ptr": "*fp32"}, {"M": 16, "N": 16, "K": 16}),
        "large": Build(PRODUCT, POINTERS, {"M": 128, "N": 256, "K": 32}),
        "long": Build(PRODUCT, POINTERS, {"M": 64, "N": 64, "K": 1024}),
        "gluon": Build(GLUON, TWO_POINTERS, {"N": 128}),
        "helped": Build(uses_helpers, {"x_ptr": "*fp32"}, {"N": 128}),
        **MISTAKES,
        "ampere": Build(PRODUCT, POINTERS, {"M": 64, "N": 64}, target="sm_80"),
        "broken": Build(BROKEN, POINTERS, {"M": 64, "N": 64}),
        "aborts": Build(ABORTS, POINTERS, {"M": 64, "N": 64}),
        "after": Build(PRODUCT, POINTERS, {"M": 64, "N": 64}, num_warps=8),
    }
    done = []
    found = dict(zip(builds, compile_kernels(builds.values(), cache=cache, report=done.append), strict=True))
    assert done == [*range(1, len(builds) + 1)]
    return found


def test_a_product_of_halves_runs_on_the_tensor_cores(results):
    small = results["small"]
    assert small.wgmma and "wgmma.mma_async" in small.ptx and "ttg." in small.ttgir
    assert 0 < small.registers <= 255 and small.spill_bytes == 0 and small.num_warps == 4
    assert small.shared_bytes == 2 * 64 * 64 * 2  # both tiles: wgmma reads them from there
    assert "product for sm_90" in str(small) and "limited by" in str(small)
    assert small.occupancy().programs == min(small.occupancy().limits.values()) > 1


def test_no_hopper_instruction_in_full_precision_or_for_ampere(results):
    assert not results["fp32"].wgmma
    assert not results["ampere"].wgmma and ".target sm_80" in results["ampere"].ptx


def test_a_result_that_is_too_large_for_the_registers_spills(results):
    large = results["large"]
    assert large.registers == 255 and large.spill_stores > 0 and large.spill_loads > 0
    assert large.spill_bytes == large.spill_stores + large.spill_loads


def test_operands_that_are_too_large_for_shared_memory_fit_on_no_sm(results):
    long = results["long"]
    assert long.occupancy().programs == 0 and long.occupancy().limit == "shared memory"


def test_a_kernel_that_does_not_compile_shows_its_line_and_the_next_is_compiled(results):
    error = results["broken"]
    assert isinstance(error, CompileError)
    assert "product does not compile" in str(error) and "tl.dot(a, tl.load(c_ptr))" in str(error)
    lines = BROKEN.text.splitlines()
    assert lines[[line[:4] for line in lines].index("def ") + error.line - 1].strip() == error.source
    assert results["after"].num_warps == 8


def test_a_kernel_that_crashes_the_compiler_is_the_only_one_without_a_result(results):
    assert isinstance(results["aborts"], CompileError)
    assert "product: Triton's compiler ended with" in str(results["aborts"])


def test_a_kernel_that_takes_too_long_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "SECONDS_A_KERNEL", 0.5)
    slow = Source("import time\ntime.sleep(60)\n", "product")
    with pytest.raises(CompileError, match="product: Triton's compiler ended with -9, or was ended after 0.5 seconds"):
        compile_kernel(slow, signature={}, cache=tmp_path)


def test_a_result_in_the_cache_is_read_and_a_damaged_one_is_compiled_again(results, cache, monkeypatch):
    arguments = {"signature": POINTERS, "constants": {"M": 64, "N": 64}, "cache": cache}
    assert len(list(cache.iterdir())) == sum(isinstance(result, Compiled) for result in results.values())

    def no_process(*args):
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_in_a_process", no_process)
        assert compile_kernel(PRODUCT, **arguments) == results["small"]
        with pytest.raises(AssertionError, match="compiled again"):
            compile_kernel(PRODUCT, **arguments, num_stages=2)
        for damage in (b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b'{"name": 1}'), gzip.compress(b"{")):
            for path in cache.iterdir():
                path.write_bytes(damage)
            with pytest.raises(AssertionError, match="compiled again"):
                compile_kernel(PRODUCT, **arguments)
    again = compile_kernel(PRODUCT, **arguments)
    assert (again.registers, again.occupancy()) == (results["small"].registers, results["small"].occupancy())
    assert compile_kernel(PRODUCT, **arguments) == again


def test_equal_builds_in_one_call_and_builds_that_are_equal_to_triton_all_get_their_result(tmp_path):
    build = Build(PRODUCT, POINTERS, {"M": 16, "N": 16}, num_warps=1)
    remarked = Build(Source(PRODUCT.text + "# the same kernel\n", "product"), POINTERS, {"M": 16, "N": 16}, num_warps=1)
    broken = Build(BROKEN, POINTERS, {"M": 64, "N": 64})
    first, second, third, *errors = compile_kernels([build, build, remarked, broken, broken], cache=tmp_path)
    assert first == second and first.registers > 0
    assert third.registers == first.registers
    assert [error.source for error in errors] == [errors[0].source] * 2 and errors[0].source


def test_a_cache_that_cannot_be_written_stops_no_compilation(tmp_path):
    (tmp_path / "file").write_text("")
    arguments = {"signature": POINTERS, "constants": {"M": 16, "N": 16}, "num_warps": 1}
    assert compile_kernel(PRODUCT, **arguments, cache=tmp_path / "file").registers > 0


def test_a_function_is_compiled_from_its_text_with_the_helpers_and_constants_it_uses(results):
    source = source_of(uses_helpers)
    assert source.name == "uses_helpers"
    for needed in ("import triton.language as tl", "HALF = _constexpr(0.5)", "def _helped", "def _doubled"):
        assert source.text.count(needed) == 1
    assert "SCALE" not in source.text
    assert results["helped"].name == "uses_helpers" and not results["helped"].wgmma


def test_gluon_is_compiled_too(results):
    assert results["gluon"].registers > 0


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_a_kernel_or_its_arguments_is_explained(results, said):
    assert isinstance(results[said], CompileError) and said in str(results[said])


def test_a_kernel_of_a_module_is_compiled_and_its_helpers_texts_are_part_of_the_cache_key(tmp_path, monkeypatch):
    package = tmp_path / "kernels_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("from triton.language import exp2\n")
    (package / "product.py").write_text("from .helper import exp2\n" + PRODUCT.text)
    monkeypatch.syspath_prepend(tmp_path)
    texts = texts_of("kernels_of_a_test.product")
    assert set(texts) == {"kernels_of_a_test.helper", "kernels_of_a_test.product"}
    arguments = {"signature": POINTERS, "constants": {"M": 16, "N": 16, "stride": 16}, "cache": tmp_path / "cache"}
    assert compile_kernel("kernels_of_a_test.product:product", **arguments).name == "product"
    (package / "helper.py").write_text("from triton.language import exp\n")
    assert texts_of("kernels_of_a_test.product") != texts
    with pytest.raises(CompileError, match="product cannot be had from the module .*exp2"):
        compile_kernel("kernels_of_a_test.product:product", **arguments)


def test_impossible_arguments_are_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match="num_warps must be a power of two, got 3"):
        Build(PRODUCT, POINTERS, num_warps=3)
    with pytest.raises(ValueError, match="target must be one of"):
        Build(PRODUCT, POINTERS, target="hopper")
    with pytest.raises(ValueError, match=r"constants\['M'\] must be a number"):
        Build(PRODUCT, POINTERS, {"M": [1]})
    with pytest.raises(ValueError, match="kernel must be 'package.module:name'"):
        compile_kernel("softmax", signature={})
    with pytest.raises(ValueError, match="no such file of Python"):
        compile_kernel("llmsys.no_such:kernel", signature={})
    with pytest.raises(ValueError, match="kernel must be a Triton kernel"):
        compile_kernel(max, signature={})
    made = {}
    exec("def made(x_ptr): pass", made)
    with pytest.raises(ValueError, match="made with exec"):
        compile_kernel(made["made"], signature={})


def test_without_triton_it_says_how_to_get_it():
    out = run_fresh(
        """
        import sys; sys.modules["triton"] = None
        from llmsys.hardware.compiler import compile_kernels
        try: compile_kernels([])
        except ImportError as error: print(error)
        """
    )
    assert "Triton is not installed" in out or "Triton has no release" in out


def test_the_kernel_that_the_documentation_compiles_is_there_with_these_arguments():
    from llmsys.attention.row_softmax import softmax_kernel

    (named,) = re.findall(r'"(llmsys\.[\w.]+:\w+)"', compiler.__doc__)
    assert named == "llmsys.attention.row_softmax:softmax_kernel"
    arguments = re.findall(r'"(\w+)": "[*\w]+"', compiler.__doc__) + re.findall(r'constants={"(\w+)"', compiler.__doc__)
    assert arguments == softmax_kernel.arg_names
