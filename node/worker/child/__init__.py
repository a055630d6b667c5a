"""The child: everything that runs inside the sandbox.

Law: nothing here imports anything of ours outside this folder, because nothing else is bound into the sandbox.
"""
