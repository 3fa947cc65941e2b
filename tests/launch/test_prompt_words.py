"""What a prompt's words do to faces is read right."""

import numpy as np
import pytest

from launch.measure import prompt_words


def faces(rng, people, obedient):
    """Returns faces whose brightness is their age, if `obedient`, and their redness their sex."""
    count = 6 * people
    ages, sexes = rng.choice([25.0, 45.0, 65.0], count), rng.choice([-1.0, 1.0], count)
    views = np.array(["frontal", "lateral"])[np.arange(count) % 2]
    pictures = rng.normal(120, 10, (count, 64, 64, 3))
    if obedient:
        pictures += ages[:, None, None, None] - 45
    pictures[..., 0] += 20 * sexes[:, None, None]
    subjects = np.repeat([f"s{i}" for i in range(people)], 6)
    attributes = {"age": ages, "sex": sexes}
    return prompt_words.Faces(pictures.clip(0, 255).astype(np.uint8), views, subjects, attributes)


@pytest.mark.parametrize("obedient", [True, False])
def test_words_are_read(obedient):
    rng = np.random.default_rng(0)
    weights = prompt_words.fitted(faces(rng, 60, obedient=True))
    made = faces(rng, 20, obedient)
    found = prompt_words.by_word(made, prompt_words.readings(weights, made))
    ages = [found[prompt_words.Word("age", age)] for age in (25.0, 45.0, 65.0)]
    assert (ages[0].high < ages[1].low and ages[1].high < ages[2].low) == obedient
    if obedient:
        assert ages[0].mean == pytest.approx(25, abs=4) and ages[2].mean == pytest.approx(65, abs=4)
    assert found[prompt_words.Word("sex", 1.0)].low > 0.5
    table = prompt_words.text({}, found)
    assert len(table.splitlines()) == 2 + 5 and "| age 25 |  | " in table
