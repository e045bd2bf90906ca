"""What happened, on disk: the journal, and the notebook made from it."""

from dojo_kernel.journal.log import Journal, read_journal
from dojo_kernel.journal.notebook import events_from_notebook, to_notebook, write_notebook

__all__ = ["Journal", "events_from_notebook", "read_journal", "to_notebook", "write_notebook"]
