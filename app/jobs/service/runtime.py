"""What the jobs module owns in an API process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.errors import RenderingOverloaded
from app.jobs.records.invoices import Seller
from app.jobs.service.backlogs import QueueBacklogs
from app.jobs.service.documents import use_fonts
from app.jobs.service.sending import WebhookSender
from app.jobs.service.storage import ArtifactStore
from app.jobs.service.watching import JobWatch
from app.jobs.settings import JobsSettings
from app.kernel.database import Database
from app.kernel.fairness.count import FairCount
from app.kernel.fairness.threads import FairThreads
from app.kernel.queue import JobKind
from app.kernel.redis.bus import Bus

# A long invoice takes a core for seconds, so one is made at a time, and those that wait are few.
_RENDERING_QUEUE = 15
_RENDERING_PER_CALLER = 2
# Each keeps some hundred KiB, a file and a connection for as long as its client likes to read.
_MOST_DOWNLOADS = 512
_MOST_DOWNLOADS_OF_A_USER = 16


@dataclass(frozen=True, slots=True)
class JobsRuntime:
    """To be made before the bus starts; the router finds it as `app.state.jobs`."""

    store: ArtifactStore
    watch: JobWatch
    backlogs: QueueBacklogs
    sender: WebhookSender
    kinds: dict[str, JobKind[Any]]
    seller: Seller
    # Makes files again whose stored ones have expired.
    rendering: FairThreads
    # Answers with a file that are under way, by user.
    downloads: FairCount

    @classmethod
    def create(
        cls,
        settings: JobsSettings,
        data_dir: Path,
        bus: Bus,
        db: Database,
        kinds: dict[str, JobKind[Any]],
        product: str,
    ) -> "JobsRuntime":
        """`product` is the seller on invoices where the settings name none."""
        use_fonts(settings.font_paths)
        watch = JobWatch(bus)
        watch.attach(db)
        return cls(
            ArtifactStore(settings, data_dir),
            watch,
            QueueBacklogs(bus, settings),
            WebhookSender(settings),
            kinds,
            Seller(settings.seller_name or product, settings.seller_address, settings.seller_tax_id),
            FairThreads(
                "rendering",
                1,
                queue=_RENDERING_QUEUE,
                per_caller=_RENDERING_PER_CALLER,
                overloaded=RenderingOverloaded,
            ),
            FairCount(_MOST_DOWNLOADS, most_of_one=_MOST_DOWNLOADS_OF_A_USER),
        )
