"""A database engine for Django: see base.py, where Django looks for it."""
