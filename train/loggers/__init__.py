"""Loggers of other projects, each behind the few calls of `FoldLog`; imported only where `--logger` names them."""
