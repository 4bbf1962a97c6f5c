"""One emitted kernel for every length, under Triton's interpreter and compiled ahead of time."""

from __future__ import annotations

import pytest
import torch

import maskdsl
from maskdsl.errors import CompileError
from maskdsl.runtime import one_for_all
from maskdsl.runtime.open_kernel import OpenKernel
from maskdsl.runtime.resources import resources

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TEXTS = {
    "causal": "keep causal(n)",
    "full": "",
    "window": "keep 0 <= q.n - k.n < 40",
    "both_ways": "keep near(n, 21)",
    "blocks": "keep block(n, 32)",
    "chunked": "keep block(n, 32) and causal(n)",
    "neighborhood": "keep neighborhood(n, 33)",
    "second_half": "keep k.n >= n.size // 2",
    "some_see_nothing": "keep q.n < k.n and k.n < q.n + 9",
    "alibi": "input slope[heads]: float keep causal(n) score logit - slope[head] * (q.n - k.n)",
    "by_key": "input bias[n]: float keep near(n, 30) score logit + bias[k.n]",
    "by_size": "keep causal(n) score logit + (q.n - k.n) / n.size",
    "sink": "input x[heads]: float keep near(n, 21) sink x[head]",
}
LENGTHS = (1, 16, 31, 32, 33, 64, 97, 130)


def open_kernel(name: str, **options: object) -> OpenKernel:
    pattern = maskdsl.parse(f"pattern p over (n) {TEXTS[name]}")
    options = {"q_tile": 32, "kv_tile": 16, "target": "sm_90", **options}
    kernel = maskdsl.compile(
        pattern.bind(heads=2, kv_heads=1),
        16,
        backend="triton",
        **options,  # type: ignore[arg-type]
    )
    assert isinstance(kernel, OpenKernel)
    return kernel


def inputs_of(name: str, tokens: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    known = {"slope": torch.rand(2, generator=g), "x": torch.rand(2, generator=g)}
    known["bias"] = torch.randn(tokens, generator=g)
    return {n: known[n] for n in maskdsl.parse(f"pattern p over (n) {TEXTS[name]}").inputs}


def tensors(tokens: int, batch: int = 2) -> list[torch.Tensor]:
    """Small whole numbers."""
    g = torch.Generator().manual_seed(tokens)
    return [torch.randint(-2, 3, (batch, h, tokens, 16), generator=g).float() for h in (2, 1, 1)]


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])  # by descriptors, by pointers
@pytest.mark.parametrize("name", TEXTS)
def test_one_module_for_all_lengths(name: str, target: str) -> None:
    kernel = open_kernel(name, target=target)
    modules = set()
    for n in LENGTHS if target == "sm_90" else (1, 33, 130):
        q, k, v = tensors(n)
        inputs = inputs_of(name, n)
        found = kernel(q, k, v, return_lse=True, **inputs)
        bound = kernel.bind(n=n)
        modules.add(bound._run.rule._module)  # type: ignore[attr-defined]
        dense = maskdsl.compile(bound.mask, 16, backend="reference")
        want = dense(q, k, v, return_lse=True, **inputs)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    (module,) = modules
    assert vars(module)["p_forward"]
    assert kernel.key.startswith("p_forward-n_size-h2-d16-float32")


@pytest.mark.parametrize("name", ["causal", "both_ways", "blocks", "alibi", "by_key", "sink"])
def test_gradients(name: str) -> None:
    kernel = open_kernel(name)
    sources = set()
    for n in (17, 64, 97):
        given = [x.requires_grad_() for x in tensors(n, batch=1)]
        inputs = {m: x.requires_grad_() for m, x in inputs_of(name, n).items()}
        leaves = [*given, *inputs.values()]
        dense = maskdsl.compile(kernel.bind(n=n).mask, 16, backend="reference")
        found, want = (run(*given, **inputs) for run in (kernel, dense))
        of_found, of_want = (torch.autograd.grad(x.square().sum(), leaves) for x in (found, want))
        torch.testing.assert_close(of_found, of_want, rtol=1e-4, atol=1e-4)
        run = kernel.bind(n=n)._run
        sources.add(tuple(x.source for x in run._kernels.values()))  # type: ignore[attr-defined]
    assert len(sources) == 1
    if not inputs_of(name, 1):
        assert [kernel.sources[x] for x in ("dq", "dkv")] == list(*sources)


def test_gradients_of_inputs_where_one_kernel_is_of_this_extent_alone() -> None:
    """Of one token, no index reads a coordinate."""
    pattern = maskdsl.parse(
        "pattern p over (n) input bias[n]: float keep causal(n) and k.n < 64 "
        "score logit + bias[k.n]"
    )
    kernel = maskdsl.compile(pattern.bind(heads=2), 16, backend="triton", target="sm_90")
    for n in (1, 2):
        bias = torch.zeros(n, requires_grad=True)
        x = torch.ones(1, 2, n, 16)
        _, lse = kernel(x, x, x, bias=bias, return_lse=True)
        (found,) = torch.autograd.grad(lse.sum(), bias)
        # each of both heads' queries gives its keys a gradient of 1 in all
        torch.testing.assert_close(found, torch.tensor([[2.0], [3.0, 1.0]][n - 1]))


@pytest.mark.parametrize("name", ["causal", "window", "alibi"])
def test_decoding(name: str) -> None:
    kernel = open_kernel(name)
    q, k, v = tensors(70)
    inputs = inputs_of(name, 70)
    whole = kernel(q, k, v, **inputs)
    keys = set()
    for n in (20, 45, 70):
        step = kernel(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], **inputs)
        torch.testing.assert_close(step, whole[:, :, n - 1 : n], rtol=1e-5, atol=1e-5)
        keys |= {x.key for x in kernel.bind(n=n)._decode._kernels.values()}  # type: ignore[union-attr]
    assert len(keys) == 1


@pytest.mark.parametrize("heads", [1, 4])
def test_decoding_where_scores_read_by_query(heads: int) -> None:
    """Lanes of heads have no extent of tokens."""
    pattern = maskdsl.parse(
        "pattern p over (n) input bias[n, heads]: float keep causal(n) "
        "score logit + bias[q.n, head] * (q.n - k.n)"
    )
    kernel = maskdsl.compile(
        pattern.bind(heads=heads, kv_heads=1), 16, torch.float16, backend="triton", target="sm_90"
    )
    for n in (2, 3, 40):
        q, (k, v) = tensors(n)[0].half(), (x.half() for x in tensors(n)[1:])
        q = q[:, :1].repeat(1, heads, 1, 1)[:, :, -1:]
        bias = torch.rand(n, heads)
        dense = maskdsl.compile(kernel.bind(n=n).mask, 16, torch.float16, backend="reference")
        want = dense(q, k, v, bias=bias)
        torch.testing.assert_close(kernel(q, k, v, bias=bias), want, rtol=2e-3, atol=2e-3)


def test_neither_forbidden_keys_nor_other_tiles_are_seen() -> None:
    kernel = open_kernel("window")
    for n in (50, 130):
        q, k, v = tensors(n, batch=1)
        want = kernel(q, k, v)
        for last in (0, 31, n - 1):  # the last query of interest
            k2, v2 = k.clone(), v.clone()
            forbidden = torch.ones(n, dtype=torch.bool)
            forbidden[max(0, last - 39) : last + 1] = False
            k2[:, :, forbidden], v2[:, :, forbidden] = 3e4, 3e37
            torch.testing.assert_close(kernel(q, k2, v2)[:, :, last], want[:, :, last])
            far = max(0, (last // 32 * 32 - 39) // 16 * 16)
            k2[:, :, :far], v2[:, :, :far] = torch.nan, torch.nan
            torch.testing.assert_close(kernel(q, k2, v2)[:, :, last], want[:, :, last])


def test_queries_and_keys_of_their_own_lengths() -> None:
    pattern = maskdsl.parse("pattern p over (n) -> (m) keep k.m <= q.n + m.size - n.size")
    kernel = maskdsl.compile(pattern.bind(heads=2), 16, backend="triton", q_tile=32, kv_tile=16)
    for n, m in ((10, 90), (90, 40), (33, 33)):
        q, k, v = tensors(n)[0], *(x.expand(2, 2, m, 16) for x in tensors(m)[1:])
        dense = maskdsl.compile(pattern.bind(n=n, m=m, heads=2), 16, backend="reference")
        torch.testing.assert_close(kernel(q, k, v), dense(q, k, v), rtol=1e-5, atol=1e-5)
    assert "m_size" in kernel.source


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("pattern p(t: bool[n]) over (n) keep t[k.n]", {"t": [True] * 39 + [False]}),
        ("pattern p over (n) keep near(n, 3 // (65536 - n.size) + 3)", {}),
        ("pattern p over (n) keep near(n, 2 ** (n.size // 8))", {}),
    ],
)
def test_patterns_of_short_extents_alone(text: str, values: dict[str, object]) -> None:
    mask = maskdsl.parse(text).bind(heads=2, **values)
    kernel = maskdsl.compile(mask, 16, backend="triton")
    with pytest.raises(CompileError, match="extents of 65536 do not fit the pattern"):
        _ = kernel.source
    q, k, v = (x.expand(2, 2, 40, 16) for x in tensors(40))
    dense = maskdsl.compile(mask.bind(n=40), 16, backend="reference")
    torch.testing.assert_close(kernel(q, k, v), dense(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", ["k.m <= q.n + m.size - n.size", "k.m < q.n - 62"])
def test_queries_past_the_typical_extent(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over keys whose last tile crosses the edge: what no typical query sees there, others may."""
    monkeypatch.setattr(one_for_all, "TYPICAL", 64)
    pattern = maskdsl.parse(f"pattern p over (n) -> (m) keep {keep}")
    kernel = maskdsl.compile(
        pattern.bind(m=40, heads=2), 16, backend="triton", q_tile=32, kv_tile=16
    )
    assert "n_size" in kernel.source
    q, (k, v) = tensors(130)[0], (x.expand(2, 2, 40, 16) for x in tensors(40)[1:])
    dense = maskdsl.compile(pattern.bind(n=130, m=40, heads=2), 16, backend="reference")
    torch.testing.assert_close(kernel(q, k, v), dense(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["forward", *(pytest.param(x, marks=pytest.mark.slow) for x in ("dq", "dkv"))]
)
def test_compiled_ahead_of_time(name: str) -> None:
    kernel = open_kernel("window", dtype=torch.bfloat16, q_tile=None, kv_tile=None)
    found = resources(kernel.sources[name], "sm_90")
    assert found.spills == 0 and found.instructions["HGMMA"] > 0
    assert found.instructions["UTMALDG"] > 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pattern p over (n) keep head == 0 or causal(n)", "heads, batches or inputs decide"),
        ("pattern p over (n) keep causal(n) and (q.n + k.n) % 3 == 0", "no closed form"),
        ("pattern p over (y, x) keep near(y, 1)", "one axis"),
        ("pattern p over (n) input d[n]: int keep d[q.n] == d[k.n]", "heads, batches or inputs"),
    ],
)
def test_a_kernel_for_each_extent_where_there_is_no_closed_form(text: str, why: str) -> None:
    pattern = maskdsl.parse(text)
    known = {"x": 3} if "(y, x)" in text else {}
    kernel = maskdsl.compile(pattern.bind(heads=2, **known), 16, backend="triton", target="sm_90")
    with pytest.raises(CompileError, match=why):
        _ = kernel.source
    q, k, v = (x.expand(2, 2, 48, 16) for x in tensors(48))
    inputs = {"d": torch.arange(48) // 7} if pattern.inputs else {}
    dense = maskdsl.compile(
        pattern.bind(**({"y": 16, "x": 3} if known else {"n": 48}), heads=2),
        16, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(kernel(q, k, v, **inputs), dense(q, k, v, **inputs))
