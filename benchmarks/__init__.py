"""Speed and memory, beside the strongest peer in the same run.

This file makes the folder come before an installed package of the same name: wheels of pyarrow 17
bring one.
"""
