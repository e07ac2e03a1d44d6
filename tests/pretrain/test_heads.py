"""The cosine head, against fairseq's ``compute_nce`` written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from etude.pretrain.targets import cosine_loss
from etude.pretrain.targets.heads import CosineHead

DIM, CODEBOOKS, CLASSES, FINAL_DIM, TEMPERATURE = 12, 3, 11, 6, 0.1


def head(codebooks: int = CODEBOOKS, *, temperature: float = TEMPERATURE) -> CosineHead:
    torch.manual_seed(0)
    return CosineHead(
        DIM, codebooks=codebooks, classes=CLASSES, final_dim=FINAL_DIM, temperature=temperature
    )


def frames(count: int = 40) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(1))


def labels(count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(CLASSES, (CODEBOOKS, count), generator=generator)


def nce(hidden: Tensor, module: CosineHead, book: int, positive: Tensor) -> Tensor:
    """fairseq: the positive first, then every class, of which the positive is taken out."""
    chunk = slice(book * FINAL_DIM, (book + 1) * FINAL_DIM)
    projected = F.linear(hidden, module.projection.weight[chunk], module.projection.bias[chunk])
    classes = module.embedding[book]
    positives = classes[positive][None]
    negatives = classes[:, None].expand(-1, len(hidden), -1)
    compared = torch.cat([positives, negatives])
    logits = torch.cosine_similarity(projected[None], compared, dim=-1) / TEMPERATURE
    same = (positives == negatives).all(dim=-1)
    logits = torch.cat([logits[:1], logits[1:].masked_fill(same, float("-inf"))])
    return logits.T


def test_the_loss_and_its_gradients_are_those_of_fairseq() -> None:
    module, hidden, positive = head(), frames().requires_grad_(), labels()
    parameters = [hidden, *module.parameters()]
    expected = torch.stack(
        [
            F.cross_entropy(
                nce(hidden, module, book, positive[book]), torch.zeros(40, dtype=torch.long)
            )
            for book in range(CODEBOOKS)
        ]
    )
    logits = module(hidden)
    loss = torch.stack([F.cross_entropy(logits[k], positive[k]) for k in range(CODEBOOKS)])
    assert logits.shape == (CODEBOOKS, 40, CLASSES)
    assert torch.allclose(loss, expected, atol=1e-5, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        assert float(theirs.abs().max()) > 1e-4
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_every_logit_is_the_cosine_over_the_temperature() -> None:
    module, hidden = head(temperature=0.25), frames()
    projected = module.projection(hidden).view(-1, CODEBOOKS, FINAL_DIM)
    expected = torch.cosine_similarity(
        projected.transpose(0, 1)[:, :, None], module.embedding[:, None], dim=-1
    )
    assert torch.allclose(module(hidden), expected / 0.25, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_the_length_of_embeddings_and_of_projections_does_not_matter(factor: float) -> None:
    module, hidden = head(), frames()
    before = module(hidden)
    with torch.no_grad():
        module.embedding.mul_(factor)
        module.projection.weight.mul_(factor)
        module.projection.bias.mul_(factor)
    assert torch.allclose(module(hidden), before, atol=1e-4, rtol=0)


def test_codebooks_share_neither_projection_nor_embeddings() -> None:
    module, hidden = head(), frames()
    before = module(hidden)
    with torch.no_grad():
        module.projection.weight[FINAL_DIM : 2 * FINAL_DIM].add_(1.0)
    after = module(hidden)
    assert [torch.equal(after[k], before[k]) for k in range(CODEBOOKS)] == [True, False, True]
    with torch.no_grad():
        module.embedding[2, 4].neg_()
    changed = (module(hidden) != after).any(dim=1)
    assert changed.nonzero().tolist() == [[2, 4]]


def test_one_codebook_of_several_is_what_a_head_of_its_own_would_be() -> None:
    module, hidden = head(), frames()
    single = head(codebooks=1)
    with torch.no_grad():
        single.projection.weight.copy_(module.projection.weight[FINAL_DIM : 2 * FINAL_DIM])
        single.projection.bias.copy_(module.projection.bias[FINAL_DIM : 2 * FINAL_DIM])
        single.embedding.copy_(module.embedding[1:2])
    assert torch.allclose(single(hidden)[0], module(hidden)[1], atol=1e-5, rtol=0)


def test_logits_are_float32_from_the_projection_on_under_bf16_autocast() -> None:
    module, hidden = head(), frames()
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(hidden)
        projected = module.projection(hidden)
    assert projected.dtype == torch.bfloat16 and logits.dtype == torch.float32
    expected = torch.cosine_similarity(
        projected.float().view(-1, CODEBOOKS, FINAL_DIM).transpose(0, 1)[:, :, None],
        module.embedding[:, None],
        dim=-1,
    )
    assert torch.allclose(logits, expected / TEMPERATURE, atol=1e-5, rtol=0)


def test_embeddings_start_uniform_in_0_to_1() -> None:
    fresh = CosineHead(4, codebooks=2, classes=100, final_dim=50, temperature=1.0)
    embedding = fresh.embedding.detach()
    assert 0.0 <= float(embedding.min()) < 0.01 and 0.99 < float(embedding.max()) < 1.0
    assert float(embedding.mean()) == pytest.approx(0.5, abs=0.02)


def test_the_loss_without_logits_is_that_of_the_logits_and_so_are_its_gradients() -> None:
    module, hidden, positive = head(), frames().requires_grad_(), labels()
    parameters = [hidden, *module.parameters()]
    weights = torch.tensor([1.0, 0.5, 3.0])
    logits = module(hidden)
    plain = torch.stack([F.cross_entropy(logits[k], positive[k]) for k in range(CODEBOOKS)])
    fused = module.loss(hidden, positive.T)
    assert torch.allclose(fused.loss, plain, atol=1e-5, rtol=0)
    right = (logits.argmax(dim=-1) == positive).float().mean(dim=1)
    assert torch.equal(fused.accuracy, right)
    for ours, theirs in zip(
        torch.autograd.grad((weights * fused.loss).sum(), parameters),
        torch.autograd.grad((weights * plain).sum(), parameters),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=0)


def test_nothing_of_the_size_of_the_logits_is_kept_for_the_backward_pass() -> None:
    rows, classes = 500, 300
    module = CosineHead(DIM, codebooks=2, classes=classes, final_dim=6, temperature=TEMPERATURE)
    label = torch.randint(classes, (rows, 2), generator=torch.Generator().manual_seed(3))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused = module.loss(frames(rows), label).loss.sum()
        largest_of_fused = max(kept)
        kept.clear()
        logits = module(frames(rows))
        plain = F.cross_entropy(logits[0], label[:, 0]) + F.cross_entropy(logits[1], label[:, 1])
    assert max(kept) >= rows * classes > 5 * largest_of_fused
    assert torch.allclose(fused, plain, atol=1e-5, rtol=0)


def assert_as_good(found: list[Tensor], known: list[Tensor], exact: list[Tensor]) -> None:
    """Not twice as far off as what is known to be good."""
    for ours, theirs, truth in zip(found, known, exact, strict=True):
        assert float((ours - truth).norm()) < 2.0 * float((theirs - truth).norm())


def test_on_tensor_cores_cosines_keep_their_digits_and_gradients_those_of_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, hidden, wanted = head(), frames().bfloat16(), labels().T
    parameters = [module.projection.weight, module.embedding]

    def results(autocast: bool = True) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = module.loss(hidden if autocast else hidden.float(), wanted).loss
        return loss.detach(), list(torch.autograd.grad(loss.sum(), parameters))

    known, known_gradients = results()
    exact, exact_gradients = results(autocast=False)
    monkeypatch.setattr(cosine_loss, "_has_tensor_cores", lambda tensor: True)
    found, gradients = results()
    assert not torch.equal(found, known)  # it is another way
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)
    assert_as_good(gradients, known_gradients, exact_gradients)
    # What is heard in float32 stays as it was.
    assert torch.equal(results(autocast=False)[0], exact)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_they_do_too() -> None:
    module, hidden, wanted = head().cuda(), frames(4096).bfloat16().cuda(), labels(4096).T.cuda()
    parameters = [module.projection.weight, module.embedding]

    def by_logits(logits_KNV: Tensor) -> Tensor:
        each = [F.cross_entropy(logits_KNV[k], wanted[:, k]) for k in range(CODEBOOKS)]
        return torch.stack(each)

    with torch.autocast("cuda", torch.bfloat16):
        found, known = module.loss(hidden, wanted).loss, by_logits(module(hidden))
    exact = by_logits(module(hidden.float()))
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)
    assert_as_good(
        *(list(torch.autograd.grad(each.sum(), parameters)) for each in (found, known, exact))
    )
