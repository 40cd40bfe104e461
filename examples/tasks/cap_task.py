"""The evaluation that the example's scripts name; the stand-in for inspect-ai only looks for its name."""

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


@task
def capitalization(data: str = "../data/words_4L.json", epoch: int | None = None) -> Task:
    """Does the model write a four-letter word in capitals? ``epoch`` only labels the log."""
    return Task(dataset=json_dataset(data, FieldSpec(input="input", target="output")), solver=generate(), scorer=exact())
