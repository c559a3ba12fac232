"""What tells processes with sockets whose sessions they have to look at again, however those were changed: SQL for the
migration."""

SESSION_CHANGES = """
CREATE FUNCTION accounts_session_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accounts_sessionchange (session_id, changed_at) VALUES (OLD.id, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER session_revoked AFTER UPDATE OF revoked_at ON accounts_session FOR EACH ROW
    WHEN (OLD.revoked_at IS DISTINCT FROM NEW.revoked_at) EXECUTE FUNCTION accounts_session_changed();
CREATE TRIGGER session_deleted AFTER DELETE ON accounts_session FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND OLD.expires_at > statement_timestamp())
    EXECUTE FUNCTION accounts_session_changed();

CREATE FUNCTION accounts_user_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO accounts_sessionchange (session_id, changed_at)
    SELECT id, clock_timestamp() FROM accounts_session
    WHERE user_id = OLD.id AND revoked_at IS NULL AND expires_at > statement_timestamp();
    RETURN NULL;
END $$;
CREATE TRIGGER user_changed AFTER UPDATE OF tier, is_active ON accounts_user FOR EACH ROW
    WHEN ((OLD.tier, OLD.is_active) IS DISTINCT FROM (NEW.tier, NEW.is_active))
    EXECUTE FUNCTION accounts_user_changed();
"""

SESSION_CHANGES_BACK = """
DROP TRIGGER user_changed ON accounts_user;
DROP TRIGGER session_deleted ON accounts_session;
DROP TRIGGER session_revoked ON accounts_session;
DROP FUNCTION accounts_user_changed();
DROP FUNCTION accounts_session_changed();
"""
