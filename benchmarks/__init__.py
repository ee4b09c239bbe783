"""Speed and memory, beside the strongest peer in the same run.

With this file, Python imports this folder and not an installed package of the same name, which
wheels of pyarrow 17 have.
"""
