"""DFD and VDFD: gradients that are kept of old tasks, and the penalty on drift they give."""
