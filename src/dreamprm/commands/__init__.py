"""The commands of ``dreamprm``, one file each: its options, and what it runs.

torch and transformers take seconds to import, so a file imports what it runs only when it runs.
"""
