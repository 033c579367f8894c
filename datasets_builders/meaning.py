"""What the columns of somebody's files mean, by their names: the one table of synonyms, and what follows from it."""

import re
import unicodedata
from collections.abc import Iterable, Sequence


def plain(name: str) -> str:
    """A name without case, accents, spaces and signs: "Customer ID" and customer_id are one, Käufer and kaufer too."""
    name = re.sub("#$", "number", name)
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKD", name.lower()))


def _words(text: str) -> list[str]:
    return [plain(word) for word in text.split()]


# By role, the surest name first; also with an ending like "id" or "number" behind it.
ROLES = {
    "user_id": _words(
        "userid user uid useridentifier customerid customer custid clientid client reviewerid visitorid "
        "visitor memberid member accountid account buyerid buyer shopperid shopper readerid reader listenerid "
        "listener viewer playerid player patronid patron borrowerid borrower subscriberid subscriber personid person "
        "profileid guestid patient student learner employee household username customeremail useremail email "
        "kundenid kundennummer kundennr kunde nutzer käufer besteller clienteid cliente usuario comprador utilisateur "
        "acheteur utente acquirente klant gebruiker kund пользователь клиент покупатель 用户 客户 会员 顧客 "
        "userpseudoid customeruserid session visit"
    ),
    "item_id": _words(
        "itemid item iid parentasin asin productid product prodid sku productsku variantsku lineitemsku "
        "stockcode movieid filmid bookid isbn isbn13 articleid article artistid trackid songid gameid appid "
        "recipeid beerid newsid animeid courseid jobid listingid businessid gmapid hotelid placeid poiid "
        "venueid goodsid merchandiseid offerid contentid videoid postid productcode itemcode articlecode "
        "articlenumber itemnumber productnumber itemno productno ean upc gtin artikelid artikelnummer "
        "artikelnr artikel produktid produkt produit produitid producto productoid produto prodotto articulo "
        "articolo товар артикул 商品 产品 物品 référence referencia"
    ),
    "timestamp": _words(
        "timestamp unixreviewtime unixtime unixtimestamp datetime eventtime eventtimestamp timestampms ts "
        "orderedat purchasedat createdat boughtat watchedat listenedat playedat ratedat reviewedat viewedat "
        "addedat occurredat createdtime orderdatetime orderdate purchasedate invoicedate transactiondate "
        "eventdate ratingdate reviewdate reviewtime purchasetime ordertime date dat day when time created "
        "bestelldatum datum zeitpunkt fecha horodatage"
    ),
    "rating": _words(
        "rating ratings overall stars starrating score reviewscore ratingvalue bookrating userrating "
        "reviewrating bewertung sterne puntuación calificación avaliação valutazione оценка 评分"
    ),
    "quantity": _words("quantity qty qtyordered lineitemquantity menge anzahl quantité cantidad quantità quantidade"),
}
_ENDINGS = re.compile(r"(id|hash|key|number|nummer|num|no|nr|code)$")
ONLY_OF_ITEMS = {"item_id": ["id", "code", "handle", "number"]}  # too little beside a user
# Words in the name of a column of numbers that are times, and in that of dates which are not the interaction's.
_OF_TIMES = frozenset("at date datetime datum day epoch on stamp t time timestamp ts utc when zeit".split())
_CLOCKS = frozenset("time clock hour uhrzeit zeit heure hora ora tijd tid".split())  # of the time of day
_NOT_OF_EVENTS = re.compile(r"birth|born|releas|publi|expir|updat|modif|regist|signup|joined|deliver|shipp|valid")
# What an item is called: text also where it looks like a number ("1984").
TITLES = frozenset(
    _words(
        "title name itemname itemtitle productname producttitle movietitle booktitle tracktitle trackname songtitle "
        "gametitle gamename recipename coursename drugname prodname lineitemname bezeichnung artikelbezeichnung "
        "artikelname produktname titel titre titolo título nom nombre nome naam namn название 名称 标题 商品名称"
    )
)
# What else tells of an item in a file that also tells of users, where any other text may be about the user.
TEXTS = TITLES | frozenset(
    _words(
        "description brand author authors artist artistname genre genres category categories itemdescription "
        "productdescription maker manufacturer publisher maincategory maincat beschreibung marke hersteller kategorie "
        "descripción vendor subcategory"
    )
)


def columns_for(role: str, names: Iterable[str], of_items: bool = False) -> list[str]:
    """The columns that may play a role, the surest first."""
    known = ROLES[role] + (ONLY_OF_ITEMS.get(role, []) if of_items else [])

    def place(name: str) -> int:
        forms = [plain(name)] + ([_ENDINGS.sub("", plain(name))] if role.endswith("_id") else [])
        return next((known.index(form) for form in forms if form in known), -1)

    return sorted((name for name in names if place(name) >= 0), key=place)


def names_a_time(name: str) -> bool | None:
    """Whether a column's name says that its numbers are times; None where it says that its times are no event's."""
    return None if _NOT_OF_EVENTS.search(plain(name)) else bool(_OF_TIMES & _words_of(name))


def names_a_clock(name: str) -> bool:
    """Whether a column's name says that it may hold the time of day of what happened."""
    words = _words_of(name)
    return not _NOT_OF_EVENTS.search(plain(name)) and bool(_CLOCKS & words or any(w.endswith("time") for w in words))


def _words_of(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def item_columns(interactions: Sequence[str], items: Sequence[str]) -> tuple[str | None, str | None]:
    """The item's id in both files: by a name that both have where one does, else each file's surest.

    The one name that stands in both files is the item's, whatever kind of thing it is (``drug_code``).
    """
    theirs, ours = columns_for("item_id", interactions), columns_for("item_id", items, of_items=True)
    for name in theirs:
        for other in ours:
            if plain(name) == plain(other):
                return name, other
    users = columns_for("user_id", interactions)
    shared = [n for n in interactions if n in items and n not in users and plain(n) != "id"]
    shared = [n for n in shared if plain(n).endswith("id")] or shared
    if len(shared) == 1 and not theirs:
        return shared[0], shared[0]
    return next(iter(theirs), None), next(iter(ours), None)
