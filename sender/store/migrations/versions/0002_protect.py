"""Pace, guard, breakers, canaries, intents and retention.

Holds become breakers: a credential that rests goes on resting.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE apps ADD COLUMN healing BOOLEAN DEFAULT false NOT NULL")
    op.execute("""
        CREATE INDEX devices_quarantined_idx ON devices (app_id, state_changed_at, id) WHERE state = 'quarantined'
    """)
    op.execute("""
        ALTER TABLE campaigns
            ADD COLUMN over DOUBLE PRECISION,
            ADD COLUMN finish_by TIMESTAMP WITH TIME ZONE,
            ADD COLUMN canary JSONB,
            ADD COLUMN canary_state TEXT,
            ADD COLUMN retested BIGINT DEFAULT '0' NOT NULL,
            ADD COLUMN totals JSONB,
            ADD COLUMN sent_removed_at TIMESTAMP WITH TIME ZONE
    """)
    op.execute("""
        CREATE INDEX campaigns_retained_idx ON campaigns (started_on)
            WHERE started_on IS NOT NULL AND sent_removed_at IS NULL
    """)
    op.execute("""
        ALTER TABLE batches
            ADD COLUMN failures SMALLINT DEFAULT '0' NOT NULL,
            ADD COLUMN error TEXT,
            ADD COLUMN halted BOOLEAN DEFAULT false NOT NULL
    """)
    op.execute("""
        CREATE TABLE breakers (
            credential TEXT NOT NULL,
            state TEXT DEFAULT 'closed' NOT NULL,
            cause TEXT,
            since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            until TIMESTAMP WITH TIME ZONE,
            trips SMALLINT DEFAULT '0' NOT NULL,
            pace DOUBLE PRECISION,
            pace_top DOUBLE PRECISION,
            pace_cause TEXT,
            paced_at TIMESTAMP WITH TIME ZONE,
            slowed_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT breakers_pkey PRIMARY KEY (credential)
        )
         WITH (fillfactor = 50)
    """)
    op.execute("""
        INSERT INTO breakers (credential, state, cause, since, until, trips)
        SELECT credential, 'open', cause, since, until, 1 FROM holds WHERE until > now()
    """)
    op.execute("DROP TABLE holds")
    op.execute("""
        CREATE TABLE trials (
            campaign_id BIGINT NOT NULL,
            environment TEXT NOT NULL,
            state TEXT DEFAULT 'trial' NOT NULL,
            judged BIGINT DEFAULT '0' NOT NULL,
            accepted BIGINT DEFAULT '0' NOT NULL,
            bad_token BIGINT DEFAULT '0' NOT NULL,
            wrong_topic BIGINT DEFAULT '0' NOT NULL,
            gone BIGINT DEFAULT '0' NOT NULL,
            probed BIGINT DEFAULT '0' NOT NULL,
            moved BIGINT DEFAULT '0' NOT NULL,
            judged_at TIMESTAMP WITH TIME ZONE,
            resumed BOOLEAN DEFAULT false NOT NULL,
            CONSTRAINT trials_pkey PRIMARY KEY (campaign_id, environment),
            CONSTRAINT trials_campaign_id_fkey FOREIGN KEY(campaign_id) REFERENCES campaigns (id) ON DELETE CASCADE
        )
         WITH (fillfactor = 50)
    """)
    op.execute("CREATE INDEX trials_open_idx ON trials (campaign_id) WHERE state = 'trial'")
    op.execute("""
        CREATE TABLE reservations (
            campaign_id BIGINT NOT NULL,
            environment TEXT NOT NULL,
            batch_id BIGINT NOT NULL,
            epoch INTEGER NOT NULL,
            pushes INTEGER NOT NULL,
            CONSTRAINT reservations_pkey PRIMARY KEY (campaign_id, environment, batch_id),
            CONSTRAINT reservations_campaign_id_fkey FOREIGN KEY(campaign_id) REFERENCES campaigns (id)
                ON DELETE CASCADE
        )
    """)
    op.execute("""
        CREATE TABLE staged (
            campaign_id BIGINT NOT NULL,
            environment TEXT NOT NULL,
            device_id BIGINT NOT NULL,
            token TEXT NOT NULL,
            registered_at TIMESTAMP WITH TIME ZONE,
            gone_at TIMESTAMP WITH TIME ZONE NOT NULL,
            reason TEXT NOT NULL,
            apns_id UUID NOT NULL,
            CONSTRAINT staged_pkey PRIMARY KEY (campaign_id, device_id),
            CONSTRAINT staged_campaign_id_fkey FOREIGN KEY(campaign_id) REFERENCES campaigns (id) ON DELETE CASCADE
        )
    """)
    op.execute("""
        CREATE TABLE baselines (
            app_id BIGINT NOT NULL,
            environment TEXT NOT NULL,
            judged DOUBLE PRECISION DEFAULT '0' NOT NULL,
            accepted DOUBLE PRECISION DEFAULT '0' NOT NULL,
            bad_token DOUBLE PRECISION DEFAULT '0' NOT NULL,
            wrong_topic DOUBLE PRECISION DEFAULT '0' NOT NULL,
            gone DOUBLE PRECISION DEFAULT '0' NOT NULL,
            updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT baselines_pkey PRIMARY KEY (app_id, environment),
            CONSTRAINT baselines_app_id_fkey FOREIGN KEY(app_id) REFERENCES apps (id) ON DELETE CASCADE
        )
         WITH (fillfactor = 50)
    """)
    op.execute("""
        CREATE TABLE intents (
            campaign_id BIGINT NOT NULL,
            device_id BIGINT NOT NULL,
            batch_id BIGINT NOT NULL,
            epoch INTEGER NOT NULL,
            CONSTRAINT intents_pkey PRIMARY KEY (campaign_id, device_id)
        )
    """)
