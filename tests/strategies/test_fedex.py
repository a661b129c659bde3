"""FedEx-LoRA: exact against what is really assigned, and a residual that grows and is folded."""

import pytest
import torch
from pydantic import ValidationError

from fedlora.errors import UserError
from fedlora.tensors import Tensors, is_memory, nbytes, select
from fedlora.testing import FakeBase, Federation, worst
from strategies.fedex import FedEx

ASSIGNMENTS = ("average", "local", "reinit")
LAYER = "layer.0.query"
WIDE = {LAYER: (90, 120)}  # a layer that factors stay smaller than


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("wire", [torch.bfloat16, torch.float16])
def test_exact_against_what_a_lossy_wire_delivers(assignment: str, wire: torch.dtype) -> None:
    """Means rounded on the wire are what clients get, so the residual is taken against those: W* is
    the mean of the products of the uploads, on all clients, round after round."""
    fed = Federation(FedEx(assignment=assignment), wire=wire)
    for participants in [(0, 1, 2), (3,), (1, 2), (0, 1, 2, 3)]:
        fed.step(participants)
        truth = fed.mean_of_products()
        assert worst(fed.server(), truth) < 1e-6
        for client in fed.clients:
            assert worst(fed.effective(client), truth) < 1e-6


def test_a_client_that_skipped_rounds_has_everybodys_weights() -> None:
    """The residual is cumulative: whoever was away since the start ends with the same W, up to the
    rounding of two ways to the same sum."""
    for assignment in ASSIGNMENTS:
        fed = Federation(FedEx(assignment=assignment))
        for participants in [(0, 1), (1, 2), (0, 1), (0, 2)]:
            fed.step(participants)
        views = [fed.effective(c) for c in fed.clients]
        assert all(worst(v, views[3]) < 1e-6 for v in views)


def test_the_residual_grows_at_its_end() -> None:
    """Each round appends (K−1)·r columns and leaves the earlier ones to the bit: only the tail has
    to be sent. One client alone appends nothing."""
    fed = Federation(FedEx(), base=FakeBase(shapes=WIDE))
    widths, held = [], torch.zeros(90, 0)
    for participants in [(0, 1), (0, 1, 2), (3,), (2, 3)]:
        fed.step(participants)
        P, Q = fed.state[f"{LAYER}.P"], fed.state[f"{LAYER}.Q"]
        assert torch.equal(P[:, : held.shape[1]], held) and Q.shape == (P.shape[1], 120)
        widths.append(P.shape[1])
        held = P
    assert widths == [4, 12, 12, 16]


def test_one_client_leaves_no_residual() -> None:
    """What one client uploads is assigned as it is."""
    fed = Federation(FedEx())
    fed.step((1,))
    assert not {k.rpartition(".")[2] for k in fed.state} & {"P", "Q", "D"}
    assert torch.equal(fed.state[f"{LAYER}.B"], fed.updates[0].tensors[f"{LAYER}.B"])


def test_factors_as_large_as_the_layer_become_dense() -> None:
    """Where recompression does not help any more P and Q are folded into D and grow afresh beside
    it: the state never holds more than a layer of factors beside a layer, and W* is unharmed."""
    fed = Federation(FedEx())
    folds = 0
    for participants in [(0, 1, 2, 3), (1, 2, 3), (0, 1), (0, 3), (2, 3)]:
        before = set(fed.state)
        fed.step(participants)
        for module, (m, n) in fed.base.shapes.items():
            rank = fed.state[f"{module}.P"].shape[1] if f"{module}.P" in fed.state else 0
            assert rank * (m + n) < m * n
            assert (f"{module}.Q" in fed.state) == (rank > 0)
            folds += f"{module}.P" in before and rank == 0
        assert worst(fed.effective(fed.clients[0]), fed.mean_of_products()) < 1e-6
    assert folds >= 2 and f"{LAYER}.D" in fed.state and f"{LAYER}.P" in fed.state


def test_a_residual_of_small_rank_is_recompressed_rather_than_folded() -> None:
    """Factors wider than their rank shrink to it: clients that all move along one direction."""
    fed = Federation(FedEx(), base=FakeBase(shapes=WIDE))
    for _ in range(5):
        fed.number += 1
        updates = [fed.train(c, 0.25) for c in fed.clients]
        for i, u in enumerate(updates):
            A, B = fed.state[f"{LAYER}.A"], fed.state[f"{LAYER}.B"]
            u.tensors[f"{LAYER}.A"] = A + i * torch.ones_like(A)
            u.tensors[f"{LAYER}.B"] = B + i * torch.ones_like(B)
        fed.updates = updates
        truth = fed.mean_of_products()
        fed.aggregate(updates)
        assert worst(fed.server(), truth) < 1e-6
    assert f"{LAYER}.D" not in fed.state
    assert fed.state[f"{LAYER}.P"].shape[1] < 5 * 12


def test_truncation_is_the_best_rank_of_each_rounds_residual() -> None:
    """What `truncate = r'` appends is the r' leading singular triplets of that round's dense ΔW."""
    exact, cut = Federation(FedEx()), Federation(FedEx(truncate=3))
    for fed in (exact, cut):
        fed.step((0, 1, 3))
    for module in fed.base.shapes:
        dense = exact.state[f"{module}.P"].double() @ exact.state[f"{module}.Q"].double()
        U, S, V = torch.linalg.svd(dense)
        best = (U[:, :3] * S[:3]) @ V[:3]
        P, Q = cut.state[f"{module}.P"], cut.state[f"{module}.Q"]
        assert P.shape[1] == 3
        torch.testing.assert_close(P.double() @ Q.double(), best, rtol=0, atol=1e-6)
    cut.step((0, 2))
    assert cut.state[f"{LAYER}.P"].shape[1] == 6


def product(state: Tensors, module: str) -> torch.Tensor:
    """P·Q in float64."""
    return state[f"{module}.P"].double() @ state[f"{module}.Q"].double()


def lost(fed: Federation, module: str) -> torch.Tensor:
    """s (Σ p_i B_i A_i − B̄ Ā) of the last round, dense in float64."""
    pairs = [(u.weight, *(u.tensors[f"{module}.{x}"].double() for x in "BA")) for u in fed.updates]
    B_bar, A_bar = (fed.state[f"{module}.{x}"].double() for x in "BA")
    return fed.base.scale * (sum(p * (B @ A) for p, B, A in pairs) - B_bar @ A_bar)


def best(M: torch.Tensor, rank: int) -> torch.Tensor:
    U, S, V = torch.linalg.svd(M, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


def test_a_bounded_residual_grows_until_it_is_full_and_is_then_cut_to_its_best_half() -> None:
    """Against the dense truth: what a round adds is its best rank r', appended to the bit as long
    as there is room; else the whole is cut to the best half of max_rank. It never becomes dense,
    though factors of so many columns cost more than this layer."""
    fed = Federation(FedEx(truncate=3, max_rank=10), base=FakeBase(shapes={LAYER: (12, 9)}))
    P_name, Q_name, widths = f"{LAYER}.P", f"{LAYER}.Q", []
    for _ in range(7):
        before = fed.state
        fed.step((0, 1, 3))
        P, Q, added = fed.state[P_name], fed.state[Q_name], best(lost(fed, LAYER), 3)
        widths.append(had := P.shape[1])
        if len(widths) == 1:
            truth = added
        elif had > widths[-2]:
            truth = product(before, LAYER) + added
            assert torch.equal(P[:, : widths[-2]], before[P_name])
            assert torch.equal(Q[: widths[-2]], before[Q_name])
        else:
            truth = best(product(before, LAYER) + added, 5)
        torch.testing.assert_close(product(fed.state, LAYER), truth, rtol=0, atol=1e-5)
        assert f"{LAYER}.D" not in fed.state
    assert widths == [3, 6, 9, 5, 8, 5, 8]


def test_what_a_client_is_sent_stays_bounded() -> None:
    """Over many rounds, to those who come each time and to those who come late: the means and
    max_rank columns at most, and mostly only what the round added; all have the server's W."""
    fed, r, most = Federation(FedEx(truncate=2, max_rank=12), base=FakeBase(shapes=WIDE)), 4, 12
    (m, n), head = WIDE[LAYER], nbytes(select(fed.state, {"head"}))
    sent = []
    for number in range(12):
        fed.step((0, 1) if number < 11 else (0, 3))  # the last is there for the first time
        late = fed.bytes["client-3"].down if number == 11 else 0
        sent.append(fed.bytes["client-0"].down - head)
        for down in (sent[-1], late - head):
            assert down <= 4 * (m + n) * (r + most)
        assert all(worst(fed.effective(c), fed.server()) < 1e-6 for c in fed.clients)
    tails = [down for down in sent[1:] if down == 4 * (m + n) * (r + 2)]
    assert len(tails) >= 7


@pytest.mark.parametrize("assignment", ["local", "reinit"])
@pytest.mark.parametrize("cap", ["truncate", "max_rank"])
def test_bounds_go_with_average(assignment: str, cap: str) -> None:
    """The other assignments have no exact part that a cut could leave alone."""
    with pytest.raises(ValidationError, match=f"{cap} goes with .*average"):
        FedEx(assignment=assignment, **{cap: 2})


def test_local_keeps_each_clients_own_factors() -> None:
    """Client i gets back the A_i and B_i it uploaded last, across rounds it sat out; the server's
    own stay as begun, so that a newcomer starts from W*; memory never travels."""
    fed = Federation(FedEx(assignment="local"))
    begun = dict(fed.state)
    fed.step((0, 1, 2))
    uploads = {u.client.id: u.tensors for u in fed.updates}
    fed.step((1, 2))
    view = fed.view(fed.clients[0], fed.round())
    for part in "AB":
        assert torch.equal(view[f"{LAYER}.{part}"], uploads["client-0"][f"{LAYER}.{part}"])
        assert torch.equal(fed.state[f"{LAYER}.{part}"], begun[f"{LAYER}.{part}"])
    assert worst(fed.effective(fed.clients[3]), fed.mean_of_products()) < 1e-6
    assert not any(is_memory(k) for c in fed.clients for k in fed.view(c, fed.round()))


def test_local_shares_no_more_than_the_clients_span() -> None:
    """With everybody there each round the shared product telescopes to Σ p_i s B_i A_i: K·r
    columns, however many rounds went by."""
    fed = Federation(FedEx(assignment="local"), base=FakeBase(shapes=WIDE))
    for _ in range(4):
        fed.step()
        assert fed.state[f"{LAYER}.P"].shape[1] == 4 * 4
        assert worst(fed.server(), fed.mean_of_products()) < 1e-6


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_a_dropped_update_changes_nobody(assignment: str) -> None:
    """A client whose update did not count still has everybody's W afterwards."""
    fed = Federation(FedEx(assignment=assignment))
    fed.step()
    fed.number += 1
    fed.train(fed.clients[0], 1.0)  # never arrives
    fed.updates = [fed.train(fed.clients[i], 0.5) for i in (1, 2)]
    fed.aggregate(fed.updates)
    assert worst(fed.effective(fed.clients[0]), fed.mean_of_products()) < 1e-6


def test_reinit_draws_as_peft_does() -> None:
    """A ~ U(−1/√n, 1/√n), another one for each module and round; B = 0."""
    fed = Federation(
        FedEx(assignment="reinit"), base=FakeBase(shapes={"a": (90, 120), "b": (90, 120)})
    )
    seen = []
    for _ in range(2):
        fed.step()
        seen += [fed.state["a.A"], fed.state["b.A"]]
        assert not fed.state["a.B"].any()
    for A in seen:
        assert 0.95 < float(A.abs().max()) * 120**0.5 <= 1 and abs(float(A.mean())) < 0.01
    assert len({A.numpy().tobytes() for A in seen}) == 4


class Pissa(FakeBase):
    """Begins with a part of W0 in B and A, and takes it out, as the server's base does."""

    def initial(self) -> Tensors:
        tensors = super().initial()
        for module, (m, _) in self.shapes.items():
            B = self.draw(f"{module}.B", m, self.rank).bfloat16().float()
            A = tensors[f"{module}.A"].bfloat16().float()
            tensors |= {f"{module}.A": A, f"{module}.B": B}
            tensors |= {f"{module}.P": -self.scale * B, f"{module}.Q": A}
        return tensors


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_exact_from_factors_that_are_not_zero(assignment: str, wire: torch.dtype) -> None:
    """With adapter.init = pissa or olora: W0 at the start, and then everybody's W, newcomers' too,
    is the mean of the products less what was taken out of W0."""
    fed = Federation(FedEx(assignment=assignment), wire=wire, base=Pissa())
    nothing = {k: torch.zeros(s, dtype=torch.float64) for k, s in fed.base.shapes.items()}
    assert all(worst(fed.effective(c), nothing) < 1e-5 for c in fed.clients)
    for participants in [(0, 1), (1, 2), (0, 2), (0, 1, 2, 3)]:
        fed.step(participants)
        truth = fed.mean_of_products()
        assert worst(fed.server(), truth) < 1e-5
        assert all(worst(fed.effective(c), truth) < 1e-5 for c in fed.clients)


def test_a_bound_that_would_cut_into_w0_is_refused() -> None:
    """With pissa and olora the residual begins with what was taken out of W0."""
    with pytest.raises(UserError, match=r"max_rank = 7 .* 16 or more"):
        Federation(FedEx(max_rank=7), base=Pissa())
    fed = Federation(FedEx(max_rank=16), base=Pissa())
    for _ in range(3):
        fed.step()
        assert worst(fed.server(), fed.mean_of_products()) < 0.2
