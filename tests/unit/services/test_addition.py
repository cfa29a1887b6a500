"""The built-in task: every solution adds up, and held-out problems stay out."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import AdditionConfig
from services.addition import CHARACTERS, draw_problems, is_held_out, make_problem

pytestmark = pytest.mark.unit

NUMBERS = st.integers(min_value=0, max_value=999)


@pytest.mark.parametrize(
    ("a", "b", "solution"),
    [
        (347, 285, "7+5+0=12;4+8+1=13;3+2+1=6;632"),
        (0, 0, "0+0+0=0;0+0+0=0;0+0+0=0;0"),
        (999, 999, "9+9+0=18;9+9+1=19;9+9+1=19;1998"),
        (5, 95, "5+5+0=10;0+9+1=10;0+0+1=1;100"),
        (120, 304, "0+4+0=4;2+0+0=2;1+3+0=4;424"),
    ],
)
def test_make_problem_writes_every_carry(a: int, b: int, solution: str) -> None:
    problem = make_problem(a, b)
    assert (problem.prompt, problem.solution, problem.answer) == (f"{a}+{b}=", solution, str(a + b))


@given(NUMBERS, NUMBERS)
def test_make_problem_solution_follows_from_its_own_steps(a: int, b: int) -> None:
    problem = make_problem(a, b)
    *steps, answer = problem.solution.split(";")
    carry, total = 0, 0
    for place, step in enumerate(steps):
        left, right = step.split("=")
        x, y, carried = map(int, left.split("+"))
        assert (x, y) == (a // 10**place % 10, b // 10**place % 10)
        assert carried == carry
        assert x + y + carried == int(right)
        carry, digit = divmod(int(right), 10)
        total += digit * 10**place
    assert len(steps) == 3
    assert int(answer) == total + 1000 * carry == a + b
    assert problem.answer == answer


@given(NUMBERS, NUMBERS)
def test_make_problem_needs_no_character_that_the_tokenizer_lacks(a: int, b: int) -> None:
    problem = make_problem(a, b)
    assert set(problem.prompt + problem.solution + problem.answer) <= set(CHARACTERS)


@given(seed=st.integers(0, 2**32), other_seed=st.integers(0, 2**32))
def test_held_out_problems_occur_in_no_training_prompt(seed: int, other_seed: int) -> None:
    train = {each.prompt for each in draw_problems(AdditionConfig(num_problems=150, seed=seed), held_out=False)}
    held_out = {each.prompt for each in draw_problems(AdditionConfig(num_problems=50, seed=other_seed), held_out=True)}
    assert len(train) == 150
    assert len(held_out) == 50
    assert train.isdisjoint(held_out)


def test_held_out_problems_are_five_in_a_hundred() -> None:
    share = sum(is_held_out(a, b) for a in range(300) for b in range(300)) / 300**2
    assert share == pytest.approx(0.05, abs=0.005)


def test_draw_problems_same_seed_gives_the_same_order() -> None:
    config = AdditionConfig(num_problems=200, seed=4)
    first = list(draw_problems(config, held_out=False))
    assert list(draw_problems(config, held_out=False)) == first
    more = draw_problems(AdditionConfig(num_problems=300, seed=4), held_out=False)
    assert list(islice(more, 200)) == first


def test_draw_problems_other_seed_gives_other_problems() -> None:
    first, second = (
        {each.prompt for each in draw_problems(AdditionConfig(num_problems=200, seed=seed), held_out=False)}
        for seed in (1, 2)
    )
    assert len(first & second) < 20


def test_draw_problems_gives_no_problem_twice() -> None:
    problems = list(draw_problems(AdditionConfig(num_problems=3000, seed=0), held_out=True))
    assert len({each.prompt for each in problems}) == 3000
