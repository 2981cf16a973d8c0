"""The parts of Faust that the views replace are those that their application uses."""

from processor.views.faust import app as views
from processor.views.faust.sensor import ViewSensor
from processor.views.faust.tables import ViewTable, ViewTables


def test_faust_uses_the_tables_and_the_sensor_of_the_views() -> None:
    assert (type(views.minutes), type(views.totals)) == (ViewTable, ViewTable)
    assert type(views.app.tables) is ViewTables
    assert type(views.app.monitor) is ViewSensor
