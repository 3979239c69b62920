"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "survey",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("slug", sa.String(64), nullable=False, unique=True),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("plan_sha256", sa.String(64), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("opened", sa.BigInteger, nullable=False),
        sa.Column("erased", sa.Integer, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_survey"),
    )
    op.create_table(
        "item",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("survey", sa.Integer, sa.ForeignKey("survey.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("told", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_item"),
        sa.UniqueConstraint("survey", "number", name="uq_item"),
    )
    op.create_index("ix_item_survey", "item", ["survey"])
    op.create_table(
        "rater",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("survey", sa.Integer, sa.ForeignKey("survey.id", ondelete="CASCADE"), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("outside_id_hash", sa.String(64)),
        sa.Column("consented", sa.BigInteger, nullable=False),
        sa.Column("age", sa.String(32)),
        sa.Column("experience", sa.String(64)),
        sa.Column("finished", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_rater"),
        sa.UniqueConstraint("survey", "outside_id_hash", name="uq_rater_outside"),
    )
    op.create_table(
        "sheet",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("survey", sa.Integer, sa.ForeignKey("survey.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("taken_by", sa.String(32), sa.ForeignKey("rater.id", ondelete="SET NULL"), unique=True),
        sa.PrimaryKeyConstraint("id", name="pk_sheet"),
        sa.UniqueConstraint("survey", "number", name="uq_sheet"),
    )
    op.create_table(
        "sheet_item",
        sa.Column("sheet", sa.Integer, sa.ForeignKey("sheet.id", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("item", sa.Integer, sa.ForeignKey("item.id", ondelete="CASCADE"), nullable=False),
        sa.Column("flipped", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("sheet", "position", name="pk_sheet_item"),
    )
    op.create_table(
        "answer",
        sa.Column("rater", sa.String(32), sa.ForeignKey("rater.id", ondelete="CASCADE"), nullable=False),
        sa.Column("item", sa.Integer, sa.ForeignKey("item.id", ondelete="CASCADE"), nullable=False),
        sa.Column("question", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("value", sa.SmallInteger, nullable=False),
        sa.Column("shown", sa.BigInteger, nullable=False),
        sa.Column("answered", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("rater", "item", "question", "revision", name="pk_answer"),
    )
