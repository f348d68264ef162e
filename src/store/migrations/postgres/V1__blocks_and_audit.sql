CREATE TABLE foregate.blocks (
    network    cidr PRIMARY KEY,
    reference  text NOT NULL,
    reason     text NOT NULL,
    source     text NOT NULL CHECK (source IN ('manual', 'automatic')),
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz
);
CREATE INDEX blocks_expires_at ON foregate.blocks (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE foregate.audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL,
    actor   text NOT NULL,
    origin  text NOT NULL,
    action  text NOT NULL,
    subject text NOT NULL,
    result  text NOT NULL
);
