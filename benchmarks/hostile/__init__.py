"""Files that mean harm, and what the service does with each.

Kinds of files are functions of a seeded generator: ``models``, ``archives`` and ``images`` have them. ``intake`` puts
files through the worker's intake, ``service`` one of each kind through the whole service. Nothing is stored, and the
only harm that any file tries is to leave a folder, the flag, where the runner looks for it.
"""
