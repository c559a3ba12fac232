"""What holds in the marketplace's tables whatever code does: SQL for the migration."""

# What was uploaded stays as it is: what is reviewed is what is signed, and that is what clients get. Approval needs an
# approving review of these very bytes by somebody who is neither their author nor the plugin's owner, and checks of
# which none blocks.
VERSIONS = """
CREATE FUNCTION billing_version_begins() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> 'draft' THEN
        RAISE EXCEPTION 'a version begins as a draft' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER version_begins BEFORE INSERT ON billing_pluginversion
    FOR EACH ROW EXECUTE FUNCTION billing_version_begins();

CREATE FUNCTION billing_version_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a version is never changed, and only a draft is deleted' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER version_content_kept BEFORE UPDATE ON billing_pluginversion FOR EACH ROW
    WHEN ((OLD.plugin_id, OLD.version, OLD.manifest, OLD.permissions, OLD.sha256, OLD.size, OLD.object, OLD.author_id)
        IS DISTINCT FROM
        (NEW.plugin_id, NEW.version, NEW.manifest, NEW.permissions, NEW.sha256, NEW.size, NEW.object, NEW.author_id))
    EXECUTE FUNCTION billing_version_kept();
CREATE TRIGGER version_kept BEFORE DELETE ON billing_pluginversion FOR EACH ROW
    WHEN (OLD.state <> 'draft') EXECUTE FUNCTION billing_version_kept();
CREATE TRIGGER review_kept BEFORE UPDATE OR DELETE ON billing_pluginreview FOR EACH ROW
    EXECUTE FUNCTION billing_version_kept();

CREATE FUNCTION billing_version_reviewed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM billing_pluginreview AS review
        WHERE review.version_id = NEW.id AND review.decision = 'approve' AND review.sha256 = NEW.sha256
            AND review.reviewer NOT IN (
                SELECT user_id FROM billing_developer
                WHERE user_id IS NOT NULL AND id IN (
                    NEW.author_id, (SELECT developer_id FROM billing_plugin WHERE id = NEW.plugin_id)
                )
            )
    ) THEN
        RAISE EXCEPTION 'nobody else has approved version %', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    IF NOT EXISTS (SELECT FROM billing_plugincheck WHERE version_id = NEW.id)
        OR EXISTS (SELECT FROM billing_plugincheck WHERE version_id = NEW.id AND required AND blocks) THEN
        RAISE EXCEPTION 'the checks of version % do not let it pass', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER version_reviewed BEFORE UPDATE OF state ON billing_pluginversion FOR EACH ROW
    WHEN (NEW.state IN ('approved', 'listed', 'yanked', 'revoked')
        AND OLD.state NOT IN ('approved', 'listed', 'yanked', 'revoked'))
    EXECUTE FUNCTION billing_version_reviewed();
"""

# A listed plugin offers a listed version of its own, at the end of each transaction.
LISTINGS = """
CREATE FUNCTION billing_plugin_listed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM billing_plugin AS plugin LEFT JOIN billing_pluginversion AS version
            ON version.id = plugin.current_version_id
        WHERE plugin.id = NEW.id AND plugin.state = 'listed'
            AND (version.plugin_id, version.state) IS DISTINCT FROM (plugin.id, 'listed')
    ) THEN
        RAISE EXCEPTION 'plugin % offers a version that is not listed', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER plugin_listed AFTER INSERT OR UPDATE ON billing_plugin
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.state = 'listed') EXECUTE FUNCTION billing_plugin_listed();
CREATE FUNCTION billing_version_unlisted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM billing_plugin AS plugin, billing_pluginversion AS version
        WHERE version.id = NEW.id AND version.state <> 'listed'
            AND plugin.current_version_id = NEW.id AND plugin.state = 'listed'
    ) THEN
        RAISE EXCEPTION 'version % is offered, and is not listed', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER version_unlisted AFTER UPDATE ON billing_pluginversion
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.state = 'listed' AND NEW.state <> 'listed')
    EXECUTE FUNCTION billing_version_unlisted();
"""

# A plugin's sums are those of its ratings, also when an account is deleted with its own.
RATINGS = """
CREATE FUNCTION billing_ratings_summed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE billing_plugin SET stars = stars - OLD.stars, ratings = ratings - 1 WHERE id = OLD.plugin_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE billing_plugin SET stars = stars + NEW.stars, ratings = ratings + 1 WHERE id = NEW.plugin_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ratings_summed AFTER INSERT OR UPDATE OR DELETE ON billing_pluginrating
    FOR EACH ROW EXECUTE FUNCTION billing_ratings_summed();
"""

# A payment's row says what became of it, once; what is settled of a sale is what its payments add up to; and no more
# of a transfer is taken back than was sent.
PAYMENTS = """
CREATE FUNCTION billing_payment_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a payment to a developer is never changed' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER payment_content_kept BEFORE UPDATE ON billing_developerpayment FOR EACH ROW
    WHEN ((OLD.developer_id, OLD.purchase_id, OLD.kind, OLD.cents, OLD.currency, OLD.transfer_id)
        IS DISTINCT FROM
        (NEW.developer_id, NEW.purchase_id, NEW.kind, NEW.cents, NEW.currency, NEW.transfer_id)
        OR OLD.state <> 'open' AND (OLD.state, OLD.stripe_id) IS DISTINCT FROM (NEW.state, NEW.stripe_id))
    EXECUTE FUNCTION billing_payment_kept();
CREATE TRIGGER payment_kept BEFORE DELETE ON billing_developerpayment
    FOR EACH ROW EXECUTE FUNCTION billing_payment_kept();

CREATE FUNCTION billing_sale_adds_up() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    sale uuid;
    transfer uuid;
BEGIN
    IF TG_TABLE_NAME = 'billing_pluginpurchase' THEN
        sale := NEW.id;
    ELSE
        sale := NEW.purchase_id;
        transfer := NEW.transfer_id;
    END IF;
    IF EXISTS (
        SELECT FROM billing_pluginpurchase AS purchase WHERE purchase.id = sale AND settled_cents <> (
            SELECT coalesce(sum(CASE WHEN kind IN ('transfer', 'kept') THEN cents ELSE -cents END), 0)
            FROM billing_developerpayment
            WHERE purchase_id = sale AND state IN ('open', 'done')
        )
    ) THEN
        RAISE EXCEPTION 'what is settled of sale % is not what its payments say', sale
            USING ERRCODE = 'check_violation';
    END IF;
    IF transfer IS NOT NULL AND EXISTS (
        SELECT FROM billing_developerpayment AS sent WHERE sent.id = transfer AND sent.cents < (
            SELECT coalesce(sum(cents), 0) FROM billing_developerpayment
            WHERE transfer_id = transfer AND state IN ('open', 'done')
        )
    ) THEN
        RAISE EXCEPTION 'more than transfer % is taken back of it', transfer USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER payment_adds_up AFTER INSERT OR UPDATE ON billing_developerpayment
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION billing_sale_adds_up();
CREATE CONSTRAINT TRIGGER sale_adds_up AFTER INSERT OR UPDATE OF settled_cents ON billing_pluginpurchase
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION billing_sale_adds_up();
"""

MARKETPLACE = VERSIONS + LISTINGS + RATINGS + PAYMENTS
MARKETPLACE_BACK = """
DROP TRIGGER version_begins ON billing_pluginversion;
DROP TRIGGER version_content_kept ON billing_pluginversion;
DROP TRIGGER version_kept ON billing_pluginversion;
DROP TRIGGER version_reviewed ON billing_pluginversion;
DROP TRIGGER version_unlisted ON billing_pluginversion;
DROP TRIGGER review_kept ON billing_pluginreview;
DROP TRIGGER plugin_listed ON billing_plugin;
DROP TRIGGER ratings_summed ON billing_pluginrating;
DROP TRIGGER payment_content_kept ON billing_developerpayment;
DROP TRIGGER payment_kept ON billing_developerpayment;
DROP TRIGGER payment_adds_up ON billing_developerpayment;
DROP TRIGGER sale_adds_up ON billing_pluginpurchase;
DROP FUNCTION billing_payment_kept();
DROP FUNCTION billing_sale_adds_up();
DROP FUNCTION billing_version_begins();
DROP FUNCTION billing_version_kept();
DROP FUNCTION billing_version_reviewed();
DROP FUNCTION billing_version_unlisted();
DROP FUNCTION billing_plugin_listed();
DROP FUNCTION billing_ratings_summed();
"""
