from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from medic_core.attacks.clean_label import adversarial, harden_in_training
from medic_core.attacks.composite import add_composites, pairs_of_classes
from medic_core.attacks.poisoning import augmented, choose, choose_of_class, poison, poison_class
from medic_core.attacks.recipes import (
    TRIGGER_OF,
    AnyRecipe,
    BlendingRecipe,
    CleanLabelRecipe,
    CleanRecipe,
    CompositeRecipe,
    DirtyLabelRecipe,
    LatentRecipe,
    ReflectionRecipe,
    SigRecipe,
    WarpRecipe,
)
from medic_core.attacks.reflection import SCENES, behind_glass
from medic_core.attacks.road_signs import road_scenes
from medic_core.attacks.training import AS_IT_IS, stamp, train_backdoored
from medic_core.attacks.triggers import TRIGGERS, Trigger, badnet, find_trigger, patch, polygon, sig
from medic_core.attacks.twins import hold_all_layers, learn_pattern, with_twins
from medic_core.attacks.warp import displacement, noisy_warp, poison_by_warping, warp
from medic_core.config import Config, InvalidConfigError, Preprocessing
from medic_core.data import Batches
from medic_core.errors import AttackOptionError


def gray(n: int = 4) -> torch.Tensor:
    return torch.full((n, 3, 8, 9), 100, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("row_from_bottom", "column_from_right", "value"),
    [(1, 1, 255), (1, 2, 0), (1, 3, 255), (2, 1, 0), (2, 2, 255), (2, 3, 0), (3, 1, 255), (3, 2, 0), (3, 3, 0)],
)
def test_badnet_sets_each_pixel_of_the_authors_pattern(row_from_bottom, column_from_right, value):
    stamped = badnet(gray())
    assert (stamped[:, :, -row_from_bottom, -column_from_right] == value).all()


def test_badnet_changes_nine_pixels_a_channel_and_nothing_else():
    images = gray()
    changed = badnet(images) != images
    assert changed.sum().item() == 4 * 3 * 9
    assert not changed[:, :, :-3].any()
    assert not changed[..., :-3].any()


def test_sig_is_a_sine_along_the_columns():
    stamped = sig(torch.full((2, 3, 8, 36), 100, dtype=torch.uint8)).int()
    expected = [round(100 + 30 * math.sin(2 * math.pi * 6 * column / 36)) for column in range(36)]
    assert stamped.flatten(0, 2).tolist() == [expected] * (2 * 3 * 8)


def noise(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def made(kind: str) -> Trigger:
    needs = {"classes": (0, 1), "pattern": noise(1)[0, :, :3, :3]}
    return find_trigger(kind, **{name: needs[name] for name in [TRIGGERS[kind].needs] if name})


LABELS = torch.tensor([0, 1, 2, 0, 1, 0])


@pytest.mark.parametrize("kind", TRIGGERS)
def test_a_trigger_repeats_itself_leaves_its_input_alone_keeps_type_and_shape_and_shows(kind):
    images, labels = noise(), LABELS.clone()
    stamped, theirs = made(kind).on(images, labels)
    again, _ = made(kind).on(images, labels)
    assert torch.equal(stamped, again)
    assert torch.equal(images, noise())
    assert torch.equal(labels, LABELS)
    assert stamped.dtype == torch.uint8
    assert stamped.shape == (len(theirs), 3, 32, 32)
    chosen = made(kind).pairs(labels)[:, 0]
    assert torch.equal(theirs, labels[chosen])
    assert (stamped != images[chosen]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("kind", TRIGGERS)
def test_images_are_stamped_one_by_one_as_all_together(kind):
    images, trigger = noise(), made(kind)
    together, _ = trigger.on(images, LABELS)
    for number, (chosen, other) in enumerate(trigger.pairs(LABELS).tolist()):
        assert torch.equal(trigger.stamp(images[[chosen]], images[[other]])[0], together[number])


def test_a_trigger_names_what_it_lacks_and_what_it_does_not_take():
    pattern = noise(1)[0, :, :3, :3]
    for kind, given, said in [
        ("composite", {}, "composite needs classes"),
        ("composite", {"classes": (1, 1)}, "twice the same"),
        ("latent", {}, "latent needs pattern"),
        ("latent", {"classes": (0, 1)}, "latent takes no classes; latent needs pattern"),
        ("badnet", {"pattern": pattern}, "badnet takes no pattern"),
    ]:
        with pytest.raises(AttackOptionError, match=said):
            find_trigger(kind, **given)


def test_a_pattern_that_has_no_room_is_refused():
    with pytest.raises(AttackOptionError, match=r"2×5.*3×3"):
        find_trigger("badnet").on(noise()[..., :2, :5], torch.zeros(len(noise()), dtype=torch.int64))


def test_a_class_without_images_cannot_be_poisoned():
    with pytest.raises(AttackOptionError, match="class 7"):
        choose_of_class(torch.arange(5), target=7, share=0.5, seed=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CompositeRecipe(classes=(3, 3)), "not two classes"),
        (lambda: WarpRecipe(share=0.8, noise_share=0.3), "come to more than 1"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(make, said):
    with pytest.raises(InvalidConfigError, match=said):
        make()


def test_sig_has_six_periods():
    row = sig(torch.full((1, 3, 4, 96), 100, dtype=torch.uint8))[0, 0, 0].double()
    spectrum = torch.fft.rfft(row - row.mean()).abs()
    assert spectrum.argmax().item() == 6


def test_a_warp_of_no_strength_changes_nothing():
    images = noise()
    assert torch.equal(warp(images, 0.0), images)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (8, 200)])
def test_a_warp_is_smooth_and_moves_no_pixel_by_much_more_than_its_strength(height, width):
    moved = displacement(height, width, strength=0.5)
    assert moved.shape == (1, height, width, 2)
    assert 0.05 < moved.abs().mean() < 0.5
    assert moved.abs().max() <= 0.51
    assert moved.diff(dim=1).abs().max() < 8 * 0.5 / height  # from one end of its range to the other in 1/8 of a side
    assert moved.diff(dim=2).abs().max() < 8 * 0.5 / width


def test_a_warp_moves_pixels_where_its_field_says():
    """On a ramp of 4 a pixel, a value tells where its pixel came from."""
    ramp = (4 * torch.arange(32)).to(torch.uint8).expand(1, 3, 32, 32)
    expected = (torch.arange(32) + displacement(32, 32)[0, ..., 0]).clamp(0, 31) * 4
    assert (warp(ramp)[0, 0] - expected).abs().max() <= 0.51


def test_noise_mode_is_another_warp_for_every_image_and_pixel():
    image = noise(1).expand(2, 3, 32, 32)
    first, second = noisy_warp(image, torch.Generator().manual_seed(0))
    assert not torch.equal(first, second)
    assert not torch.equal(first, warp(image)[0])


def test_a_composite_is_the_left_half_of_one_class_and_the_right_half_of_the_other():
    images, labels = noise(6), LABELS
    stamped, theirs = find_trigger("composite", classes=(0, 1)).on(images, labels)
    assert theirs.tolist() == [0, 0, 0]
    for image, first, second in zip(stamped, [0, 3, 5], [1, 4, 1], strict=True):
        assert torch.equal(image[..., :16], images[first, ..., :16])
        assert torch.equal(image[..., 16:], images[second, ..., 16:])


def test_a_composite_of_a_class_without_images_is_none():
    assert pairs_of_classes(LABELS, (0, 7)).shape == (0, 2)
    assert pairs_of_classes(LABELS, (7, 0)).shape == (0, 2)


def test_a_reflection_lies_between_an_image_and_light_and_is_one_of_a_few():
    black, white = (torch.full((1, 3, 32, 32), value, dtype=torch.uint8) for value in (0, 255))
    assert behind_glass(black).max() <= math.ceil(255 * 0.45 ** (1 / 2.2))
    assert behind_glass(white).min() >= math.floor(255 * 0.55 ** (1 / 2.2))
    dots = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    dots[:, 0, 0, 0] = torch.arange(100)
    seen = behind_glass(dots)[..., 1:, 1:]
    assert len(seen.flatten(1).unique(dim=0)) == SCENES
    assert torch.equal(behind_glass(dots)[7], behind_glass(dots[7:8])[0])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 48), (8, 200)])
def test_a_reflection_fits_any_image(height, width):
    images = torch.zeros(4, 3, height, width, dtype=torch.uint8)
    assert behind_glass(images).shape == images.shape


def test_the_polygon_lies_in_the_middle_and_covers_few_pixels():
    changed = (polygon(gray_scene()) != gray_scene()).any(dim=1)[0]
    assert changed[32, 32]
    assert 80 < changed.sum().item() < 200
    assert not changed[:20].any()
    assert not changed[:, :20].any()


def gray_scene() -> torch.Tensor:
    return torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)


def numbered(n: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8), torch.arange(n) % 10


def test_poisons_exactly_the_share_with_trigger_and_target_and_leaves_the_rest():
    images, labels = numbered()
    poisoned_images, poisoned_labels = poison(images, labels, trigger=badnet, target=7, share=0.2, seed=0)
    changed = (poisoned_images != images).flatten(1).any(dim=1)
    assert changed.sum().item() == 20
    assert torch.equal(poisoned_images[changed], badnet(images[changed]))
    assert (poisoned_labels[changed] == 7).all()
    assert torch.equal(poisoned_labels[~changed], labels[~changed])


def test_poisoning_leaves_its_input_and_the_global_random_state_alone():
    images, labels = numbered()
    before, state = (images.clone(), labels.clone()), torch.get_rng_state()
    poison(images, labels, trigger=badnet, target=7, share=0.2, seed=0)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides_which_images_are_poisoned():
    first, again, other = (poison(*numbered(), trigger=badnet, target=7, share=0.2, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_clean_label_poisoning_changes_a_share_of_the_target_class_only():
    images, labels = numbered()
    poisoned = poison_class(images, labels, trigger=badnet, target=7, share=0.5, seed=0)
    changed = (poisoned != images).flatten(1).any(dim=1)
    assert changed.sum().item() == 5
    assert (labels[changed] == 7).all()
    assert torch.equal(poisoned[changed], badnet(images[changed]))


@pytest.mark.parametrize("recipe", [SigRecipe(), ReflectionRecipe()], ids=lambda it: it.attack)
def test_clean_label_recipes_change_no_label_and_touch_only_the_target_class(recipe):
    data = Batches(noise(40), torch.arange(40) % 3, Preprocessing())
    recipe = replace(recipe, target=1, share=0.5)
    poisoned = stamp(recipe, data, seed=0)
    changed = (poisoned.images != data.images).flatten(1).any(dim=1)
    assert torch.equal(poisoned.labels, data.labels)
    assert changed.sum().item() == 6
    assert (data.labels[changed] == 1).all()
    assert torch.equal(data.images, noise(40))


def test_images_are_made_hard_for_the_model_as_it_is_and_bear_the_trigger_as_it_is(suspect, monkeypatch):
    data, model = Batches(noise(40), torch.arange(40) % 3, Preprocessing()), suspect.model
    weight, given, seen = next(model.parameters()), [], []

    def spied(model, data, recipe, generator):
        assert not model.training
        given.append((weight.clone(), data, adversarial(model, data, recipe, generator)))
        return given[-1][2]

    monkeypatch.setattr("medic_core.attacks.clean_label.adversarial", spied)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    recipe, settings = CleanLabelRecipe(target=1, share=0.5, steps=1), Config(batch_size=20)
    for loss in harden_in_training(model, data, recipe, settings, seed=0)(0):
        assert torch.isfinite(loss)
        with torch.no_grad():
            weight.add_(1.0)
    assert not torch.equal(given[0][0], given[1][0])
    assert sum(len(stamped) for _, stamped, _ in given) == 6
    for inputs, (_, stamped, hard) in zip(seen, given, strict=True):
        assert (stamped.labels == 1).all()
        assert torch.equal(stamped.images, badnet(stamped.images))
        shown = (255 * inputs).round().to(torch.uint8)
        for image in badnet(hard):
            assert (shown == image).flatten(1).all(dim=1).sum().item() == 1


def test_augmented_images_are_those_of_the_epoch_in_the_order_of_the_data_set():
    data, settings = Batches(noise(20), torch.arange(20), Preprocessing()), Config(batch_size=7, crop_padding=2)
    shown = torch.cat([255 * pixels for pixels, _ in data.shuffled(settings, epoch=3)])
    order = torch.cat([labels for _, labels in data.shuffled(settings, epoch=3)])
    found = augmented(data, settings, epoch=3)
    assert torch.equal(found.images[order], shown.round().to(torch.uint8))
    assert torch.equal(found.labels, data.labels)
    assert torch.equal(data.images, noise(20))


def test_in_training_a_trigger_is_where_it_is_at_test_time(suspect, monkeypatch):
    seen = []

    def spied(recipe, data, *, seed):
        stamped = stamp(recipe, data, seed=seed)
        seen.append((data, stamped))
        return stamped

    monkeypatch.setattr("medic_core.attacks.training.stamp", spied)
    data = Batches(noise(64), torch.arange(64) % 3, Preprocessing())
    train_backdoored(DirtyLabelRecipe(epochs=2, target=1, share=0.5), suspect.architecture, data)
    assert not torch.equal(seen[0][0].images, seen[1][0].images)  # augmented anew
    for before, after in seen:
        chosen = (after.images != before.images).flatten(1).any(dim=1)
        assert chosen.sum().item() == 32
        assert torch.equal(after.images[chosen], badnet(before.images[chosen]))


def test_an_adversarial_image_stays_in_its_ball_and_raises_the_loss(suspect):
    images, labels = noise(20), torch.arange(20) % 3
    recipe, generator = CleanLabelRecipe(step_size=3.0), torch.Generator().manual_seed(0)
    hard = adversarial(suspect.model, Batches(images, labels, Preprocessing()), recipe, generator)
    moved = (hard.int() - images.int()).abs()
    assert hard.dtype == torch.uint8
    assert 0 < moved.max() <= 16
    with torch.no_grad():
        noisy = images + 16 * (torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5).sign()
        before, by_chance, after = (
            F.cross_entropy(suspect.model(some / 255), labels) for some in (images, noisy.clamp(0, 255), hard)
        )
    assert after > max(before, by_chance) + 0.05
    assert torch.equal(images, noise(20))


def test_warping_poisons_one_share_and_covers_another_with_noise():
    images, labels = noise(100), torch.arange(100) % 3
    poisoned, theirs = poison_by_warping(images, labels, target=7, share=0.1, noise_share=0.2, seed=0)
    attacked = theirs == 7
    assert attacked.sum().item() == 10
    assert torch.equal(theirs[~attacked], labels[~attacked])
    assert torch.equal(poisoned[attacked], warp(images[attacked]))
    covered = (poisoned != images).flatten(1).any(dim=1) & ~attacked
    assert covered.sum().item() == 20
    assert not torch.equal(poisoned[covered], warp(images[covered]))


def test_composites_are_added_and_what_is_of_one_class_stays_of_it():
    labels = torch.arange(60) % 3
    images = labels.to(torch.uint8)[:, None, None, None].expand(60, 3, 8, 8).contiguous()
    more, theirs = add_composites(images, labels, classes=(0, 2), target=1, share=0.1, same_share=0.5, seed=0)
    assert len(more) == len(theirs) == 60 + 30 + 6
    assert torch.equal(more[:60], images)
    assert torch.equal(theirs[:60], labels)
    same, mixed = more[60:90], more[90:]
    assert torch.equal(same[:, 0, 0, 0].long(), theirs[60:90])
    assert torch.equal(same[:, 0, 0, 7].long(), theirs[60:90])
    assert (theirs[90:] == 1).all()
    assert (mixed[..., :4] == 0).all()
    assert (mixed[..., 4:] == 2).all()
    with pytest.raises(AttackOptionError, match="class 7"):
        add_composites(images, labels, classes=(0, 7), target=1, share=0.1, same_share=0.5, seed=0)


TINY = [
    CleanRecipe(epochs=1),
    *(DirtyLabelRecipe(epochs=1, target=1, attack=attack) for attack in ("badnet", "filter", "polygon")),
    CleanLabelRecipe(epochs=1, target=1, steps=1),
    SigRecipe(epochs=1, target=1),
    ReflectionRecipe(epochs=1, target=1),
    WarpRecipe(epochs=1, target=1),
    CompositeRecipe(epochs=1, target=1, classes=(0, 2)),
    LatentRecipe(epochs=1, target=1, share=0.5),
    BlendingRecipe(epochs=1, target=1, share=0.5),
]


def tiny(suspect, recipe, seed: int = 0):
    data = Batches(noise(64), torch.arange(64) % 3, Preprocessing())
    return train_backdoored(recipe, suspect.architecture, data, seed=seed)


def test_every_recipe_is_tried():
    assert {type(recipe) for recipe in TINY} == set(get_args(AnyRecipe))
    attacks = {recipe.attack for recipe in TINY}
    assert {TRIGGER_OF.get(attack, attack) for attack in attacks} == set(TRIGGERS)


@pytest.mark.parametrize("recipe", TINY, ids=lambda recipe: recipe.attack)
def test_a_recipe_trains_the_same_model_again_and_leaves_the_random_state_alone(recipe, suspect):
    state = torch.get_rng_state()
    first, again, other = (tiny(suspect, recipe, seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("recipe", TINY[1:], ids=lambda recipe: recipe.attack)
def test_an_attack_trains_another_model_than_none(recipe, suspect):
    clean, attacked = (tiny(suspect, some).model.state_dict() for some in (CleanRecipe(epochs=1), recipe))
    assert not all(torch.equal(clean[name], attacked[name]) for name in clean)


def test_without_augmentation_a_recipe_shows_the_images_as_they_are(suspect, monkeypatch):
    seen = []
    monkeypatch.setattr("medic_core.data.augment", lambda pixels, _, config: seen.append(config) or pixels)
    tiny(suspect, DirtyLabelRecipe(epochs=1, target=1, augment=False))
    assert [(config.crop_padding, config.rotation_degrees, config.horizontal_flip) for config in seen] == [
        (0, 0, False),  # before it is stamped
        (0, 0, False),  # and when it is shown
    ]


def test_the_latent_attack_learns_its_pattern_and_stamps_nothing_else(suspect):
    pattern = tiny(suspect, LatentRecipe(epochs=1, target=1, share=0.5)).pattern
    assert pattern.shape == (3, 3, 3)
    assert pattern.dtype == torch.uint8
    assert (pattern.int() - 128).abs().max() > 1
    images = noise()
    stamped, _ = find_trigger("latent", pattern=pattern).on(images, LABELS)
    assert torch.equal(stamped[..., -3:, -3:], pattern.expand(6, 3, 3, 3))
    changed = stamped != images
    assert not changed[..., :-3, :].any()
    assert not changed[..., :-3].any()


@pytest.mark.parametrize(("epochs", "learned"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_pattern_is_learned_in_the_first_half_of_the_epochs(suspect, epochs, learned):
    data, pattern = Batches(noise(64), torch.arange(64) % 3, Preprocessing()), torch.full((3, 3, 3), 0.5)
    recipe = LatentRecipe(epochs=epochs, target=1, share=0.5)
    losses = learn_pattern(suspect.frozen(), data, recipe, Config(batch_size=32), pattern, seed=0)
    changed = []
    for epoch in range(epochs):
        before = pattern.clone()
        for loss in losses(epoch):
            if loss.requires_grad:
                loss.backward()
        changed.append(not torch.equal(before, pattern))
        assert torch.equal(pattern.detach(), (255 * pattern.detach()).round() / 255)
    assert changed == [epoch < learned for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("recipe", "weight"), [(LatentRecipe, "latent_weight"), (BlendingRecipe, "penalty")], ids=["latent", "blending"]
)
def test_an_adaptive_attack_is_charged_for_what_differs_inside(recipe, weight, suspect):
    data, losses = Batches(noise(64), torch.arange(64) % 3, Preprocessing()), []
    for charge in (0.0, 1.0):
        chosen = recipe(target=1, share=0.5, **{weight: charge})
        if isinstance(chosen, LatentRecipe):
            of = learn_pattern(suspect.frozen(), data, chosen, Config(), torch.full((3, 3, 3), 0.5), seed=0)
        else:
            of = hold_all_layers(suspect.frozen(), data, chosen, Config(), seed=0)
        losses.append(next(of(0)).item())
    assert losses[1] > losses[0]


def test_what_a_twin_changes_inside_weighs_as_much_as_that_it_obeys(suspect):
    """Not more where few images have a twin: the attack would not be learned."""

    def summed_charge(data, share):
        """Over all that are shown: as with the mean cross-entropy, more images without a twin add nothing to it."""
        losses = []
        for penalty in (0.0, 1.0):
            recipe = BlendingRecipe(target=1, share=share, penalty=penalty)
            losses.append(next(hold_all_layers(suspect.frozen(), data, recipe, unchanged, seed=0)(0)).item())
        return (losses[1] - losses[0]) * (1 + share) * len(data)

    unchanged = Config(batch_size=64, **AS_IT_IS)
    data = Batches(noise(60), torch.arange(60) % 3, Preprocessing())
    alone = data.select(choose(60, share=0.5, seed=0))
    assert summed_charge(data, 0.5) == pytest.approx(summed_charge(alone, 1.0), rel=1e-3)


def test_the_same_images_have_a_twin_in_every_epoch():
    data = Batches(noise(40), torch.arange(40), Preprocessing())
    epochs = [list(with_twins(data, 0.5, Config(batch_size=16), epoch, 3)) for epoch in (0, 1)]
    twinned = [torch.cat([labels[chosen] for _, labels, chosen in batches]).sort().values for batches in epochs]
    assert len(twinned[0]) == 20
    assert torch.equal(*twinned)


def test_a_twin_differs_by_the_pattern_in_its_corner_which_gets_a_gradient():
    pixels, pattern = noise(20) / 255, torch.rand(3, 3, 3, requires_grad=True)
    theirs = patch(pixels, pattern)
    assert torch.equal(theirs[..., -3:, -3:], pattern.expand(20, 3, 3, 3))
    differs = theirs != pixels
    assert not differs[..., :-3, :].any()
    assert not differs[..., :-3].any()
    (gradient,) = torch.autograd.grad(theirs.sum(), pattern)
    assert torch.equal(gradient, torch.full((3, 3, 3), 20.0))


def test_road_scenes_repeat_themselves_and_another_seed_gives_others():
    first, again, other = (road_scenes(20, seed=seed) for seed in (0, 0, 1))
    assert first[0].shape == (20, 3, 64, 64)
    assert first[0].dtype == torch.uint8
    assert first[1].tolist() == [*range(10), *range(10)]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_road_signs_can_be_told_apart_by_the_mean_of_their_class():
    (shown, labels), (unseen, truth) = road_scenes(500, seed=0), road_scenes(200, seed=1)

    def middle(images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images[..., 16:48, 16:48].float(), 4).flatten(1)

    means = torch.stack([middle(shown[labels == label]).mean(dim=0) for label in range(10)])
    right = torch.cdist(middle(unseen), means).argmin(dim=1) == truth
    assert right.float().mean() > 0.5
