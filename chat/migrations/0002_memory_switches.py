from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="conversation",
            name="memory",
            field=models.BooleanField(
                default=True,
                db_default=True,
                help_text="off: nothing of it is remembered, and nothing is recalled for it",
            ),
        ),
        migrations.AddField(
            model_name="conversation",
            name="has_private",
            field=models.BooleanField(
                default=False,
                db_default=False,
                editable=False,
                help_text="later answers may tell of a private message, and are not kept in memory",
            ),
        ),
        migrations.AddField(
            model_name="turn",
            name="memory",
            field=models.BooleanField(
                default=True, db_default=True, help_text="off: it was asked to leave nothing in memory"
            ),
        ),
    ]
