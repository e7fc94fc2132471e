"""Views that are given clean in training: which, what the network sees, what counts, and that runs stay comparable."""

from __future__ import annotations

import re

import pytest
import torch

from models.diffusion import DiffusionDDIM
from pipelines.training.data.global_batch import GlobalBatch
from pipelines.training.objectives.known_views import KnownViewOptions, give_clean, weights_of_unknown
from pipelines.training.state import latest, read_state
from pipelines.training.trainer import train
from tests.pipelines.training.objectives.test_image_training import folder, load, objective
from tests.pipelines.training.test_resume import stopped_after
from tests.pipelines.training.test_training import load as load_text
from tests.tiny_orbits import NUM_VIEWS
from utils.errors import ConfigError
from utils.registry import ENGINE

assert folder  # a fixture

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*, rank=0, num_processes=1, size=64, **options):
    share = GlobalBatch(size=size, parts=1, seed=3, device=CPU)
    share.rank, share.num_processes = rank, num_processes
    share.begin(5, 0)
    return KnownViewOptions(**options).draw_known(share, batch_size=size, num_views=24)


def test_view_0_is_always_given_and_few_are_given_more_often():
    known_BV = drawn(size=4096, p_known=0.5)
    given_BV = known_BV[known_BV.any(dim=1)]
    assert len(given_BV) / 4096 == pytest.approx(0.5, abs=0.03)
    assert given_BV[:, 0].all()
    counts_B = given_BV.sum(dim=1)
    shares = [float((counts_B == count).float().mean()) for count in (1, 2, 3, 4)]
    assert shares == pytest.approx([(k / 4) ** 0.5 - ((k - 1) / 4) ** 0.5 for k in (1, 2, 3, 4)], abs=0.03)
    others_V = given_BV[:, 1:].float().mean(dim=0)
    assert float(others_V.min()) > 0.5 * float(others_V.mean())  # each place has its turn


def test_what_is_given_does_not_depend_on_the_number_of_processes():
    whole_BV = drawn(size=8, p_known=0.7)
    halves = [drawn(size=4, p_known=0.7, rank=rank, num_processes=2) for rank in (0, 1)]
    assert whole_BV.any()
    assert torch.equal(torch.cat(halves), whole_BV)


def test_off_nothing_is_drawn_and_nothing_changes(folder):
    task = objective(folder)
    before = task.global_batch.generator.get_state()
    assert task.options.draw_known(task.global_batch, batch_size=4, num_views=NUM_VIEWS) is None
    assert torch.equal(task.global_batch.generator.get_state(), before)
    x_t, x0 = torch.randn(2, 1, 3, 1, 1), torch.randn(2, 1, 3, 1, 1)
    assert give_clean(x_t, x0, None) is x_t
    assert weights_of_unknown(None) is None


def test_known_views_do_not_count_and_the_loss_keeps_its_scale():
    known_BV = torch.tensor([[True, False, True, False], [False] * 4])
    weights = weights_of_unknown(known_BV)
    target = torch.zeros(2, 3, 4, 2, 2)
    prediction = torch.full_like(target, 0.5)
    prediction[0, :, [0, 2]] = 100.0
    loss = DiffusionDDIM(DiffusionDDIM.Config()).loss
    assert float(loss(prediction, target, weights)) == pytest.approx(0.25)


def test_the_network_sees_known_views_clean_and_the_others_noisy(folder, monkeypatch):
    task = objective(folder, objective={"p_known": 1.0, "max_known": 2})
    batch = next(task.batches())
    seen = {}
    forward = task.network.forward
    task.network.forward = lambda x, *args, **kwargs: seen.update(x=x) or forward(x, *args, **kwargs)
    drawn = {}
    draw = KnownViewOptions.draw_known
    monkeypatch.setattr(KnownViewOptions, "draw_known", lambda *a, **k: drawn.setdefault("known", draw(*a, **k)))
    loss, _ = task(batch)
    apart_BV = (seen["x"] - batch.latents_BCVHW).abs().amax(dim=(1, 3, 4))
    assert torch.equal(apart_BV == 0, drawn["known"])
    assert drawn["known"][:, 0].all()
    assert torch.isfinite(loss)


def test_learns_from_known_views_and_goes_on_bit_for_bit(folder, caplog):
    caplog.set_level("INFO")
    known = {"objective": {"p_known": 1.0, "max_known": 2}, "decay_mode": "constant", "log_interval": 4}
    known["cache_latents"] = True
    final = train(load(folder, num_steps=16, save_ckp_interval=12, log_dir=str(folder / "whole"), **known))
    losses = [float(found[1]) for found in re.finditer(r"step \d+: loss ([\d.]+)", caplog.text)]
    assert losses[-1] < 0.8 * losses[0]
    stopped_after(folder, 12, of="whole", as_="parts")
    train(load(folder, num_steps=16, log_dir=str(folder / "parts"), **known))
    one, two = (read_state(latest(folder / name / "state")) for name in ("whole", "parts"))
    torch.testing.assert_close(one.model, two.model, atol=0, rtol=0)
    assert final.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_known": 1.5}, "objective.p_known must lie in [0, 1], got 1.5"),
        ({"p_known": 0.5, "max_known": 0}, "max_known must be >= 1, got 0"),
        ({"p_known": 0.5, "max_known": NUM_VIEWS}, f"objective.max_known={NUM_VIEWS} must be below the {NUM_VIEWS}"),
    ],
)
def test_unusable_options_are_refused(folder, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(load(folder, objective=options))


def test_a_text_model_has_no_view_to_be_given(folder):
    cfg = load_text(folder, TASK_TYPE="train_t2v_entrance")
    with pytest.raises(
        ConfigError, match=re.escape("objective.p_known=0.5 needs an image model; set objective.p_known=0")
    ):
        ENGINE.build({"type": cfg.TASK_TYPE, "p_known": 0.5}, cfg=cfg, device=CPU)
