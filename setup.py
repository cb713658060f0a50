"""What pyproject.toml cannot say: configs/ and launch/ lie inside the installed package."""

from setuptools import find_packages
from setuptools import setup

setup(
    packages=[*find_packages(include=["jaxpmi*"]), "jaxpmi.configs", "jaxpmi.launch"],
    package_dir={"jaxpmi.configs": "configs", "jaxpmi.launch": "launch"},
)
