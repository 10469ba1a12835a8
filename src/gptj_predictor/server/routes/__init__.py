"""The HTTP routes: which call goes where."""
