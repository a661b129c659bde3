"""FSLoRA: slices are sketches, unbiased, and put back where they came from."""

import pytest
import torch
from pydantic import ValidationError

from fedlora import Client, Round, Tensors
from fedlora.errors import UserError
from fedlora.strategy import Scaling
from fedlora.streams import stream
from fedlora.testing import Federation
from strategies.fedit import FedIT
from strategies.fslora import FSLoRA

METHOD = FSLoRA()


def marked(r: int, *modules: str) -> Tensors:
    """A state whose rows of A and columns of B hold their own index."""
    index = torch.arange(float(r))
    return {
        name: tensor
        for k in modules
        for name, tensor in {
            f"{k}.A": index[:, None].repeat(1, 7),
            f"{k}.B": index.repeat(5, 1),
        }.items()
    }


def indices(view: Tensors, module: str) -> list[int]:
    """The index set of a module's slices, which A and B must share."""
    rows, columns = view[f"{module}.A"][:, 0], view[f"{module}.B"][0]
    assert torch.equal(rows, columns)
    return rows.int().tolist()


def test_one_index_set_for_each_client_round_and_module() -> None:
    """A and B share it; another client, round or module has another; asked again it is the same."""
    state = marked(64, "q", "v")
    one, other = Client("one", 20, 1.0), Client("other", 20, 1.0)
    sets = {}
    for client in (one, other):
        for number in (1, 2):
            view = METHOD.broadcast(state, client, Round(number))
            for module in ("q", "v"):
                sets[client.id, number, module] = I = indices(view, module)
                assert len(set(I)) == 20 and sorted(I) == I
            again = METHOD.broadcast(state, client, Round(number))
            assert indices(again, "q") == sets[client.id, number, "q"]
    assert len({tuple(I) for I in sets.values()}) == 8


def test_what_is_downloaded_to_be_evaluated_is_trained_next() -> None:
    """The evaluation after round t has the slices of round t + 1: one download for both."""
    state, client = marked(16, "q"), Client("one", 5, 1.0)
    evaluated = METHOD.broadcast(state, client, Round(3, "evaluate"))
    assert indices(evaluated, "q") == indices(METHOD.broadcast(state, client, Round(4)), "q")
    assert indices(evaluated, "q") != indices(METHOD.broadcast(state, client, Round(3)), "q")


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_sketch_is_unbiased(k: int) -> None:
    """Over rounds, (r/k) Σ_{j∈I} e_j e_jᵀ has mean I: right on average at scale s·r/k."""
    r, rounds = 6, 3000
    state, client = marked(r, "q"), Client("one", k, 1.0)
    total = torch.zeros(r)
    for number in range(rounds):
        total[indices(METHOD.broadcast(state, client, Round(number)), "q")] += r / k
    deviation = (r / k - 1) ** 0.5 * rounds**-0.5
    assert float((total / rounds - 1).abs().max()) <= 4 * deviation + 1e-6


@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_of_slices_are_those_of_the_sketch(rslora: bool) -> None:
    """Training the slices at scale s·r/k is training W0 + s B S A: same loss, same gradients, zero
    outside I. The scale comes from the global r, under rsLoRA too."""
    fed = Federation(METHOD, ranks=(2,))
    module, (m, n) = "layer.0.query", fed.base.shapes["layer.0.query"]
    scaling = Scaling(4, 10.0, rslora)
    client = Client("client-0", 2, METHOD.scale(scaling, 2))
    state = {k: torch.randn(t.shape, generator=stream(0, k)) for k, t in fed.state.items()}
    view = METHOD.broadcast(state, client, Round(1))
    I = [int((state[f"{module}.A"] == row).all(1).nonzero()) for row in view[f"{module}.A"]]
    S = torch.zeros(4, 4, dtype=torch.float64)
    S[I, I] = 4 / 2

    x = torch.randn(8, n, generator=stream(0, "x")).double()
    target = torch.randn(8, m, generator=stream(0, "y")).double()

    def gradients(tensors: Tensors, middle: torch.Tensor, s: float) -> list[torch.Tensor]:
        A, B = (tensors[f"{module}.{p}"].double().requires_grad_() for p in "AB")
        loss = ((x @ (s * B @ middle @ A).T - target) ** 2).mean()
        return [loss.detach(), *torch.autograd.grad(loss, (A, B))]

    loss, A, B = gradients(view, torch.eye(2, dtype=torch.float64), client.scale)
    full_loss, full_A, full_B = gradients(state, S, scaling.at(4))
    torch.testing.assert_close(loss, full_loss)
    torch.testing.assert_close(A, full_A[I])
    torch.testing.assert_close(B, full_B[:, I])
    outside = [j for j in range(4) if j not in I]
    assert not full_A[outside].any() and not full_B[:, outside].any()


def test_slices_go_back_where_they_came_from() -> None:
    """The server's step is B[:, I_i] += p_i (B_i − B[:, I_i]) over all participants, rows of A
    likewise, and what nobody held is unchanged to the bit."""
    fed = Federation(METHOD, ranks=(2, 1, 1, 2))
    for _ in range(3):
        before = fed.state
        fed.step((0, 1, 2))
        untouched = 0
        for module in fed.base.shapes:
            A, B = before[f"{module}.A"].double(), before[f"{module}.B"].double()
            new_A, new_B, held = A.clone(), B.clone(), set()
            for u in fed.updates:
                own = u.sent[f"{module}.A"].double()
                I = [int((row == A).all(1).nonzero()) for row in own]
                held |= set(I)
                for at, j in enumerate(I):
                    new_A[j] += u.weight * (u.tensors[f"{module}.A"][at].double() - A[j])
                    new_B[:, j] += u.weight * (u.tensors[f"{module}.B"][:, at].double() - B[:, j])
            rest = [j for j in range(4) if j not in held]
            untouched += len(rest)
            now_A, now_B = fed.state[f"{module}.A"], fed.state[f"{module}.B"]
            torch.testing.assert_close(now_A.double(), new_A, rtol=0, atol=1e-6)
            torch.testing.assert_close(now_B.double(), new_B, rtol=0, atol=1e-6)
            assert torch.equal(now_A[rest], before[f"{module}.A"][rest])
            assert torch.equal(now_B[:, rest], before[f"{module}.B"][:, rest])
        assert untouched


def test_full_rank_is_fedit() -> None:
    """With k = r every round is FedIT's, to the bit."""
    ours, fedit = Federation(METHOD, ranks=(4, 4, 4, 4)), Federation(FedIT())
    for participants in [(0, 1, 2, 3), (1, 2)]:
        for fed in (ours, fedit):
            fed.step(participants)
    assert all(torch.equal(t, fedit.state[k]) for k, t in ours.state.items())


def test_ranks_are_dealt_out_in_turn() -> None:
    """A list goes round over clients as they joined; without `ranks` they have
    r, r/2 and r/4 in turn, so that sketching happens unless it is asked not to."""
    method = FSLoRA(ranks=[2, 8])
    assert [method.rank(8, i, f"c{i}", Round(1)) for i in range(4)] == [2, 8, 2, 8]
    assert [METHOD.rank(8, i, f"c{i}", Round(1)) for i in range(4)] == [8, 4, 2, 8]


def test_ranks_are_drawn_from_a_table() -> None:
    """A table {rank: weight} is drawn from in proportion; a client keeps what it drew."""
    method = FSLoRA.model_validate({"ranks": {"2": 3.0, "4": 1.0}})
    draws = [method.rank(8, i, f"c{i}", Round(1)) for i in range(400)]
    assert set(draws) == {2, 4}
    assert 0.68 < draws.count(2) / 400 < 0.82
    assert draws[:20] == [method.rank(8, 0, f"c{i}", Round(7)) for i in range(20)]


def test_a_rank_above_the_global_one_is_refused() -> None:
    """Also where the offending rank would be another client's; the message names both numbers."""
    for ranks in ([4, 16], {16: 1.0}):
        with pytest.raises(UserError, match=r"16.*8"):
            FSLoRA(ranks=ranks).rank(8, 0, "c", Round(1))
    with pytest.raises(ValidationError):
        FSLoRA(ranks=[0])
