"""Since when the limits of a campaign are what they are.

Nothing is known of what was changed before: its speed is measured since its start.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE apps ADD COLUMN paced_at TIMESTAMP WITH TIME ZONE")
    op.execute("ALTER TABLE campaigns ADD COLUMN paced_at TIMESTAMP WITH TIME ZONE")
