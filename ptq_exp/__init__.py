"""ptq_exp: how few bits can this network take, and why does it break?"""

__version__ = "0.1.0"
