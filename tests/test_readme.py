"""The Python examples of the README run, top to bottom, and do what the text says."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["result"].images.shape == (64, 16, 16, 1)
    assert bool(names["result"].finite)
    assert float(names["result"].final_loss) < float(names["result"].initial_loss)
