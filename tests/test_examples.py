"The examples in the notebooks, which run beside the other tests."
import pytest
from conftest import good

@pytest.mark.slow
def test_examples_of_every_notebook_run(examples): good(examples)
