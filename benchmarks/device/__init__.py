"""What the library does on the device that is there: is it right, is it fast, what holds it back?

At most 9 minutes on a GPU, compiling included; `--quick` rehearses all of it in small on two CPU
cores in 4. Every result is printed and written as it comes, so a run that is cut off leaves what it
has. What no longer fits its section's share of the time is skipped and says so; an error is written
into its row, and the run goes on and ends with code 1, as it does where a result is wrong.

It needs Python 3.11 or later, JAX 0.10 or later with the plugin of its accelerator, Flax, Optax,
Orbax, NumPy, Pillow, Matplotlib and tqdm, and the packages of launch/device_wheels.txt. No network.
On a machine without one, install these from a folder:

  pip download --no-deps --dest WHEELS -r launch/device_wheels.txt      where there is a network
  pip install --no-deps --no-index --find-links WHEELS -r launch/device_wheels.txt

PyTorch is compared with where it is there, in the same Python or in --torch-python's.

Sections: machine (versions, free memory, speed of matrix products and of copies), parity (every
method against kept results of a CPU), speed (seconds of a step, its share of the speed of matrix
products), job (configs/mnist.py whole), idle (the device's, in that job), convolutions (by hand
against XLA's own), pytorch (the same step in PyTorch). Results: benchmarks/device.md.
"""

SECTIONS = ("machine", "parity", "speed", "job", "idle", "convolutions", "pytorch")
