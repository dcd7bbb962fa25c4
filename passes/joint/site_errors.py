"""What becomes of an internal error at one site: it names the site, or leaves it in high precision if asked to."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from metis_compile.options import Config
from metis_compile.passes.graph.sites import Site
from metis_compile.policy import PolicyError

log = logging.getLogger("metis_compile.passes")


class SiteError(RuntimeError):
    """An internal error at one site. Names the site, and the option that leaves such a site alone."""


@contextmanager
def errors_at(site: Site, config: Config) -> Iterator[None]:
    """Within: an error raises SiteError, or leaves the site as it was where the options say so."""
    before = [copy.copy(operand) for operand in site.operands]
    try:
        yield
    except PolicyError:
        raise
    except Exception as error:
        if config.on_error == "leave":
            if before:
                site.lhs, site.rhs = before
            site.reason = f"left after an error: {type(error).__name__}: {error}"
            log.warning("%s left in high precision after %s: %s", site, type(error).__name__, error)
            return
        raise SiteError(
            f"metis: can't rewrite the {site}: {type(error).__name__}: {error} "
            f'(options={{"on_error": "leave"}} would leave this site in high precision)'
        ) from error
