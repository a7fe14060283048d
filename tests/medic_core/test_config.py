"""One place for every setting: bounds hold however a config is made, and presets expand as documented."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from medic_core.config import PRESETS, AutoConfig, InvalidConfigError, MedicConfig, RemovalConfig, expand_preset

OUT_OF_BOUNDS = {
    "epochs": 0,
    "batch_size": 1,
    "micro_batch_size": 1,
    "corruption": 1.1,
    "learning_rate": 0.0,
    "weight_decay": -0.1,
    "crop_padding": -1,
    "rotation_degrees": 181.0,
    "seed": -1,
    "temperature": float("nan"),
    "cloning_weight": float("inf"),
}


@pytest.mark.parametrize(("field", "value"), OUT_OF_BOUNDS.items())
def test_a_value_out_of_bounds_is_refused_in_python_and_over_http(field: str, value: float) -> None:
    with pytest.raises(InvalidConfigError, match=field):
        MedicConfig(**{field: value})
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(MedicConfig).validate_python({field: value})


@pytest.mark.parametrize(
    ("field", "word"), [("schedule", "sometimes"), ("impact", "x"), ("preset", "mine"), ("method", "auto")]
)
def test_an_unknown_word_is_refused_in_python_and_over_http(field: str, word: str) -> None:
    with pytest.raises(InvalidConfigError, match=field):
        MedicConfig(**{field: word})
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(MedicConfig).validate_python({field: word})


@pytest.mark.parametrize("config", [MedicConfig, AutoConfig])
def test_an_empty_choice_of_layers_is_refused(config: type[MedicConfig | AutoConfig]) -> None:
    with pytest.raises(InvalidConfigError, match="layers"):
        config(layers=())


@pytest.mark.parametrize("lowest", [2.0, 3.0])
def test_an_empty_interval_of_temperatures_is_refused(lowest: float) -> None:
    with pytest.raises(InvalidConfigError, match="lowest_temperature"):
        AutoConfig(lowest_temperature=lowest, highest_temperature=2.0)
    with pytest.raises(ValidationError, match="lowest_temperature"):
        TypeAdapter(AutoConfig).validate_python({"lowest_temperature": lowest, "highest_temperature": 2.0})


@pytest.mark.parametrize(
    ("field", "value"),
    {"accuracy_budget": 1.1, "runs": 0, "lowest_temperature": 0.0, "highest_temperature": 1e4}.items(),
)
def test_a_search_out_of_bounds_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidConfigError, match=field):
        AutoConfig(**{field: value})


@pytest.mark.parametrize("config", get_args(RemovalConfig))
def test_a_misspelt_key_is_an_error(config: type) -> None:
    with pytest.raises(ValidationError, match="temprature"):
        TypeAdapter(config).validate_python({"temprature": 5})


@given(st.sampled_from(sorted(PRESETS)), st.floats(0.1, 10))
def test_what_the_caller_sets_wins_over_the_preset(preset: str, temperature: float) -> None:
    expanded = expand_preset({"preset": preset, "temperature": temperature})
    config = TypeAdapter(MedicConfig).validate_python(expanded)
    assert config.temperature == temperature
    for field, value in PRESETS[preset].items():
        if field != "temperature":
            assert getattr(config, field) == value


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_sets_for_auto_what_it_sets_for_medic_but_the_temperature(preset: str) -> None:
    expanded = {method: expand_preset({"method": method, "preset": preset}) for method in ("auto", "medic")}
    assert TypeAdapter(AutoConfig).validate_python(expanded["auto"]).preset == preset
    del expanded["medic"]["temperature"]
    assert {**expanded["auto"], "method": "medic"} == expanded["medic"]


@pytest.mark.parametrize(
    ("architecture", "rate"),
    [
        ("medic/vgg11", 1e-3),
        ("medic/mobilenet_v1", 1e-3),
        ("medic/resnet16", 1e-3),
        ("torchvision/resnet50", 1e-3),
        ("medic/wide_resnet16_1", 1e-2),
    ],
)
def test_preset_paper_trains_the_architectures_of_its_appendix_e7_more_gently(architecture: str, rate: float) -> None:
    assert expand_preset({"preset": "paper"}, architecture=architecture)["learning_rate"] == rate
    assert expand_preset({"preset": "authors"}, architecture=architecture)["learning_rate"] == 1e-2
    assert expand_preset({"preset": "paper", "learning_rate": 0.5}, architecture=architecture)["learning_rate"] == 0.5


def test_the_defaults_are_the_default_preset() -> None:
    assert TypeAdapter(MedicConfig).validate_python(expand_preset({})) == MedicConfig()
    assert TypeAdapter(AutoConfig).validate_python(expand_preset({"method": "auto"})) == AutoConfig()
