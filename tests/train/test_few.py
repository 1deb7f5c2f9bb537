"""Is the router of a few prompts the discriminant that it says, and its accuracy that of prompts it has not seen?"""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moesaic.routing.guard import odds
from moesaic.train.few import discriminant, few_shot, few_shot_guard, few_shot_tree


def clouds(n: int, d: int, apart: float, experts: int = 3, seed: int = 0) -> list[torch.Tensor]:
    """Points around a centre for each expert; they lie along a common direction more than along any other."""
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(experts, d, generator=generator) / d**0.5
    stretch = torch.ones(d)
    stretch[0] = 5
    return [centre + torch.randn(n, d, generator=generator) * stretch for centre in centres]


@torch.no_grad()
@pytest.mark.parametrize(("n", "d"), [(10, 6), (10, 200), (40, 40)])
def test_it_is_the_discriminant_of_scikit_learn_with_as_much_shrinkage(n, d):
    points = clouds(n, d, 3.0)
    inside = torch.cat([rows - rows.mean(0) for rows in points]).double().numpy()
    shrinkage = ledoit_wolf_shrinkage(inside, assume_centered=True)
    reference = LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage, priors=np.full(3, 1 / 3))
    reference.fit(torch.cat(points).double().numpy(), np.repeat(range(3), n))
    others = torch.randn(7, d) * 3
    found = discriminant(points)(others).log_softmax(-1)
    torch.testing.assert_close(
        found.double(), torch.tensor(reference.predict_log_proba(others.double().numpy())), rtol=1e-3, atol=1e-3
    )


def test_the_accuracy_is_that_of_prompts_it_has_not_seen():
    """With more states than prompts it knows every prompt that it was made from."""
    points = clouds(10, 400, 0.0)
    router, judged = few_shot(points)
    assert all((router(rows).argmax(-1) == label).all() for label, rows in enumerate(points)), "known by heart"
    assert judged.of == [10, 10, 10] and 0.1 < judged.accuracy < 0.6, "and yet no better than chance"
    assert few_shot(clouds(10, 400, 60.0))[1].accuracy == 1


def test_experts_count_alike_however_many_prompts_they_have():
    few, many = clouds(40, 8, 0.0, experts=2)
    _, judged = few_shot([few[:2], many])
    assert judged.of == [2, 40]
    assert judged.accuracy == pytest.approx((judged.right[0] / 2 + judged.right[1] / 40) / 2)


@torch.no_grad()
def test_a_few_prompts_that_are_all_right_do_not_make_it_certain():
    points = clouds(10, 50, 200.0)
    router, judged = few_shot(points)
    sure = router(torch.cat(points)).softmax(-1).max(-1).values
    assert judged.accuracy == 1 and 0.8 < sure.mean() < 0.99


@torch.no_grad()
@pytest.mark.parametrize("points", [[torch.ones(2, 3), torch.zeros(2, 3)], [torch.eye(3)[:2], torch.eye(3)[1:] * 2]])
def test_prompts_that_are_all_the_same_are_no_division_by_zero(points):
    router, _ = few_shot(points)
    assert all(value.isfinite().all() for value in router.state_dict().values())
    assert [int(router(rows[:1]).argmax()) for rows in points] == [0, 1]


@torch.no_grad()
def test_a_tree_of_few_prompts_multiplies_routers_that_are_each_calibrated_alone():
    points = clouds(10, 50, 20.0, experts=4)
    tree, judged = few_shot_tree(points, [[2, 0], [1], [3]])
    inside, between = (
        few_shot([points[2], points[0]])[0],
        few_shot([torch.cat([points[2], points[0]]), *points[1::2]])[0],
    )
    x = torch.randn(5, 50)
    found, of_groups, of_members = tree(x).softmax(-1), between(x).softmax(-1), inside(x).softmax(-1)
    torch.testing.assert_close(found[:, [2, 0]], of_groups[:, :1] * of_members)
    torch.testing.assert_close(found[:, [1, 3]], of_groups[:, 1:])
    assert judged.of == [10] * 4 and judged.accuracy > 0.9


@torch.no_grad()
def test_a_tree_of_groups_of_one_is_the_flat_router_and_is_judged_alike():
    points = clouds(10, 400, 3.0)
    (flat, expected), (tree, judged) = few_shot(points), few_shot_tree(points, [[1], [2], [0]])
    rows = torch.cat(points)
    torch.testing.assert_close(tree(rows), flat(rows).log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert judged == expected and judged.accuracy < 1
    assert (tree(rows).argmax(-1) == torch.arange(3).repeat_interleave(10)).all(), "known by heart"


@torch.no_grad()
def test_held_out_prompts_of_a_tree_are_decided_with_the_temperatures_that_it_keeps():
    groups, points = [[2, 0], [1], [3]], clouds(20, 6, 4.0, experts=4, seed=2)
    tree, judged = few_shot_tree(points, groups)
    warm, cold = [0] * 4, [0] * 4
    for fold in range(10):
        kept = [torch.cat([rows[:fold], rows[fold + 1 : fold + 10], rows[fold + 11 :]]) for rows in points]
        between = discriminant([torch.cat([kept[2], kept[0]]), kept[1], kept[3]])
        inside = discriminant([kept[2], kept[0]])
        for expert, rows in enumerate(points):
            out = rows[[fold, fold + 10]]
            for hits, (t, u) in ((warm, [node.router.temperature for node in tree.nodes]), (cold, (1.0, 1.0))):
                of_groups, of_members = (between(out) / t).log_softmax(-1), (inside(out) / u).log_softmax(-1)
                each = [of_groups[:, 0] + of_members[:, 1], of_groups[:, 1], of_groups[:, 0] + of_members[:, 0]]
                best = torch.stack([*each, of_groups[:, 2]], -1).argmax(-1)
                hits[expert] += int((best == expert).sum())
    assert judged.right == warm != cold


def test_a_guard_of_few_prompts_leaves_neutral_ones_to_the_base():
    draw = torch.Generator().manual_seed(0)
    centres = 8 * torch.eye(16)
    clouds = [centre + torch.randn(10, 16, generator=draw) for centre in centres[:3]]
    neutral, later = (centres[4] + torch.randn(60, 16, generator=draw) for _ in range(2))
    guard, found = few_shot_guard(clouds, neutral, "auto")
    assert (odds(guard(later, None).outcomes) < guard.limit).double().mean() > 0.9
    assert not (odds(guard(torch.cat(clouds), None).outcomes) < guard.limit).any()
    assert found["abstained_own"] <= 0.04 and found["auroc"] > 0.95
