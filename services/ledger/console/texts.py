"""The console's words, in English and Chinese."""

from __future__ import annotations

from typing import Final

LANGUAGES: Final = ("en", "zh")

TEXTS: Final[dict[str, dict[str, str]]] = {
    "en": {
        "html_lang": "en",
        "other_language": "中文",
        "other_language_code": "zh",
        "title": "Meterway: prepaid, metered access to LLM APIs",
        "headline": "Every token paid for.",
        "headline_2": "None paid twice.",
        "lead": "A prepaid gateway for LLM APIs. Keep your client, change its base URL and its key. "
        "Each request is charged by the tokens it really used, to the billionth of a dollar.",
        "base_url": "Base URL",
        "base_urls": "Base URLs",
        "base_url_help": "Works with any client of OpenAI's API. "
        "The official SDKs need only two environment variables:",
        "key_placeholder": "your API key",
        "how": "How a request is charged",
        "how_1_title": "Held first",
        "how_1": "Before anything goes upstream, the most it can cost is set aside from your balance. "
        "What the balance does not cover is refused, and costs nothing.",
        "how_2_title": "Counted as it runs",
        "how_2": "You pay for what was read and written. Close the connection and it stops at once: "
        "what you had received is charged, the rest is not.",
        "how_3_title": "Settled once",
        "how_3": "A request is charged once, by the price in force when it began, "
        "rounded up a single time to a billionth of a dollar. The rest of the hold goes back.",
        "prices": "Prices",
        "prices_help": "US dollars per 1,000,000 tokens. Crossed out: the maker's own list price.",
        "kind_chat": "Chat",
        "kind_completion": "Completion",
        "kind_embedding": "Embeddings",
        "kind_moderation": "Moderation",
        "model": "Model",
        "input": "Input",
        "cached_input": "Cached input",
        "cache_write": "Cache write",
        "output": "Output",
        "reasoning": "Reasoning",
        "audio_input": "Audio in",
        "audio_output": "Audio out",
        "context": "Context",
        "output_max": "Max. output",
        "cutoff": "Knowledge to",
        "save": "Save {percent}%",
        "from_time": "From {time} UTC: {price}",
        "free": "free",
        "also": "also",
        "no_prices": "No model has a price yet.",
        "next": "Where to look next",
        "next_models": "The models your key may use",
        "next_api": "The operator's JSON API, described in OpenAPI",
        "next_health": "Is this part of the gateway up?",
        "next_keys": "API keys and credit come from the operator of this gateway.",
        "tool_calls": "tools",
        "function_call": "functions",
        "vision": "vision",
        "json_mode": "JSON mode",
        "structured_outputs": "structured outputs",
        "audio": "audio",
        "reasoning_capability": "reasoning",
        "embeddings": "embeddings",
        "moderation": "moderation",
        "moderated": "input is moderated",
    },
    "zh": {
        "html_lang": "zh-CN",
        "other_language": "English",
        "other_language_code": "en",
        "title": "Meterway：预付费、按量计费的大模型 API 网关",
        "headline": "每个 token 都付费，",
        "headline_2": "绝不重复收费。",
        "lead": "预付费的大模型 API 网关。客户端不用换，只需更改 base URL 和密钥。"
        "每次请求按实际用量计费，精确到十亿分之一美元。",
        "base_url": "接口地址",
        "base_urls": "接口地址",
        "base_url_help": "兼容所有 OpenAI API 客户端。使用官方 SDK 时，设置两个环境变量即可：",
        "key_placeholder": "您的 API 密钥",
        "how": "如何计费",
        "how_1_title": "先预留",
        "how_1": "请求发往上游之前，先从余额中预留它可能的最高费用。余额不足的请求会被拒绝，不产生任何费用。",
        "how_2_title": "边用边计",
        "how_2": "只为实际读取和生成的内容付费。断开连接，生成立即停止：已收到的部分计费，其余不计。",
        "how_3_title": "只结一次",
        "how_3": "每次请求只收费一次，按请求开始时的价格计算，最后仅向上取整一次，精确到十亿分之一美元。"
        "预留的余款随即退回。",
        "prices": "价格",
        "prices_help": "单位：美元 / 100 万 token。划线为官方标价。",
        "kind_chat": "对话",
        "kind_completion": "补全",
        "kind_embedding": "向量",
        "kind_moderation": "内容审核",
        "model": "模型",
        "input": "输入",
        "cached_input": "缓存输入",
        "cache_write": "缓存写入",
        "output": "输出",
        "reasoning": "推理",
        "audio_input": "音频输入",
        "audio_output": "音频输出",
        "context": "上下文",
        "output_max": "最大输出",
        "cutoff": "知识截止",
        "save": "省 {percent}%",
        "from_time": "UTC {time} 起：{price}",
        "free": "免费",
        "also": "另有",
        "no_prices": "尚无已定价的模型。",
        "next": "接下来",
        "next_models": "您的密钥可用的模型",
        "next_api": "运营者的 JSON API（OpenAPI 文档）",
        "next_health": "网关的这一部分是否在线",
        "next_keys": "API 密钥与额度由本网关的运营者提供。",
        "tool_calls": "工具调用",
        "function_call": "函数调用",
        "vision": "图像",
        "json_mode": "JSON 模式",
        "structured_outputs": "结构化输出",
        "audio": "音频",
        "reasoning_capability": "推理",
        "embeddings": "向量",
        "moderation": "审核",
        "moderated": "输入经过审核",
    },
}


def choose_language(asked: str | None, accept_language: str) -> str:
    """`asked` (the query) wins; else the first of Accept-Language, by weight, that there is; else English."""
    if asked in LANGUAGES:
        return asked
    weighted: list[tuple[float, int, str]] = []
    for position, part in enumerate(accept_language.split(",")[:20]):
        tag, _, weight = part.strip().partition(";q=")
        try:
            quality = float(weight) if weight else 1.0
        except ValueError:
            continue
        language = tag.strip().lower().split("-")[0]
        if language in LANGUAGES and quality > 0:
            weighted.append((-quality, position, language))
    return min(weighted)[2] if weighted else "en"
