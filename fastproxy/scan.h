/* Byte searches of the HTTP/1.1 parser: each with SSE2 or NEON, and a portable twin that the tests run too.
 *
 * No function reads at or after `end`: a message may end at an unreadable page. The last bytes before `end`,
 * where 16 would not fit, are therefore always done by the twin. FASTPROXY_PORTABLE leaves only the twins.
 */
#ifndef FASTPROXY_SCAN_H
#define FASTPROXY_SCAN_H

#include <arpa/inet.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(FASTPROXY_PORTABLE) && defined(__SSE2__)
#include <emmintrin.h>
#define FP_WIDE 1
#elif !defined(FASTPROXY_PORTABLE) && defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>
#define FP_WIDE 1
#else
#define FP_WIDE 0
#endif

/* ---- classes of bytes ---- */

#define FP_IS_TOKEN 1   /* tchar, RFC 9110 5.6.2 */
#define FP_IS_VALUE 2   /* field value: HTAB, SP, VCHAR, obs-text, RFC 9110 5.5 */
#define FP_IS_TARGET 4  /* visible ASCII but '#': a target has no fragment, RFC 9112 3.2 */
#define FP_IS_HOST 8    /* unreserved and sub-delims without ',' (joined Host fields) and '%' */
#define FP_IS_UNRESERVED 16 /* RFC 3986 2.3 */

#define FP_ALNUM(c) ((((c) | 32) >= 'a' && ((c) | 32) <= 'z') || ((c) >= '0' && (c) <= '9'))
#define FP_UNRESERVED(c) (FP_ALNUM(c) || (c) == '-' || (c) == '.' || (c) == '_' || (c) == '~')
#define FP_ANY7(c, a, b, d, e, f, g, h) \
    ((c) == (a) || (c) == (b) || (c) == (d) || (c) == (e) || (c) == (f) || (c) == (g) || (c) == (h))
#define FP_TOKEN(c) \
    (FP_ALNUM(c) || FP_ANY7(c, '!', '#', '$', '%', '&', '\'', '*') \
     || FP_ANY7(c, '+', '-', '.', '^', '_', '`', '|') || (c) == '~')
#define FP_HOST(c) \
    (FP_UNRESERVED(c) || FP_ANY7(c, '!', '$', '&', '\'', '(', ')', '*') || (c) == '+' || (c) == ';' \
     || (c) == '=')
#define FP_C(c) \
    (uint8_t)((FP_TOKEN(c) ? FP_IS_TOKEN : 0) | (((c) >= 32 && (c) != 127) || (c) == 9 ? FP_IS_VALUE : 0) \
              | ((c) > 32 && (c) < 127 && (c) != '#' ? FP_IS_TARGET : 0) | (FP_HOST(c) ? FP_IS_HOST : 0) \
              | (FP_UNRESERVED(c) ? FP_IS_UNRESERVED : 0))
#define FP_C4(c) FP_C(c), FP_C((c) + 1), FP_C((c) + 2), FP_C((c) + 3)
#define FP_C16(c) FP_C4(c), FP_C4((c) + 4), FP_C4((c) + 8), FP_C4((c) + 12)
#define FP_C64(c) FP_C16(c), FP_C16((c) + 16), FP_C16((c) + 32), FP_C16((c) + 48)

static const uint8_t fp_class[256] = {FP_C64(0), FP_C64(64), FP_C64(128), FP_C64(192)};

static inline uint8_t fp_lower(uint8_t c) { return (uint8_t)(c - 'A') < 26 ? c | 32 : c; }

static inline int fp_hex(uint8_t c) /* value of a hex digit, or -1 */
{
    if ((uint8_t)(c - '0') < 10)
        return c - '0';
    c |= 32;
    return (uint8_t)(c - 'a') < 6 ? c - 'a' + 10 : -1;
}

/* ---- words: up to 8 bytes of a name in one number ---- */

#define FP_FOLD 0x2020202020202020ull

static inline uint64_t fp_load(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    w = __builtin_bswap64(w);
#endif
    return w;
}

/* The first min(n, 8) bytes, the rest zero; n > 0. Reads in one load where `end` allows. */
static inline uint64_t fp_head_word(const uint8_t *p, size_t n, const uint8_t *end)
{
    uint64_t w = 0;
    if (n >= 8)
        return fp_load(p);
    if (end - p >= 8)
        return fp_load(p) & (~0ull >> (64 - 8 * n));
    for (size_t i = 0; i < n; i++)
        w |= (uint64_t)p[i] << (8 * i);
    return w;
}

static inline uint64_t fp_tail_word(const uint8_t *p, size_t n, uint64_t head)
{
    return n >= 8 ? fp_load(p + n - 8) : head;
}

/* `a` and `b` are folded by |FP_FOLD. The last multiplier was searched so that the top bytes of all names of
 * enum Known differ: they index its table. */
static inline uint32_t fp_hash_words(uint64_t a, uint64_t b, size_t n)
{
    uint64_t h = a * 0x9e3779b97f4a7c15ull;
    uint64_t g = (b + n) * 0xc2b2ae3d27d4eb4full;
    h ^= (g << 32) | (g >> 32);
    h ^= h >> 29;
    h *= 0x1e2feb89414c343dull;
    uint32_t r = (uint32_t)(h >> 32);
    return r ? r : 1;
}

/* ---- searches ---- */

#if FP_WIDE && defined(__SSE2__)
typedef __m128i fp_block;
typedef uint32_t fp_mask;
#define FP_MASK_STEP 1 /* bits of the mask per byte of the block */
static inline fp_block fp_get(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline fp_block fp_all(uint8_t c) { return _mm_set1_epi8((char)c); }
static inline fp_block fp_eq(fp_block v, uint8_t c) { return _mm_cmpeq_epi8(v, fp_all(c)); }
static inline fp_block fp_le(fp_block v, uint8_t c) { return _mm_cmpeq_epi8(_mm_min_epu8(v, fp_all(c)), v); }
static inline fp_block fp_ge(fp_block v, uint8_t c) { return _mm_cmpeq_epi8(_mm_max_epu8(v, fp_all(c)), v); }
static inline fp_block fp_either(fp_block a, fp_block b) { return _mm_or_si128(a, b); }
static inline fp_block fp_minus(fp_block v, uint8_t c) { return _mm_sub_epi8(v, fp_all(c)); }
static inline fp_mask fp_bits(fp_block v) { return (uint32_t)_mm_movemask_epi8(v); }
static inline fp_mask fp_not(fp_mask m) { return m ^ 0xffffu; }
static inline unsigned fp_first(fp_mask m) { return (unsigned)__builtin_ctz(m); }
#elif FP_WIDE
typedef uint8x16_t fp_block;
typedef uint64_t fp_mask;
#define FP_MASK_STEP 4
static inline fp_block fp_get(const uint8_t *p) { return vld1q_u8(p); }
static inline fp_block fp_all(uint8_t c) { return vdupq_n_u8(c); }
static inline fp_block fp_eq(fp_block v, uint8_t c) { return vceqq_u8(v, fp_all(c)); }
static inline fp_block fp_le(fp_block v, uint8_t c) { return vcleq_u8(v, fp_all(c)); }
static inline fp_block fp_ge(fp_block v, uint8_t c) { return vcgeq_u8(v, fp_all(c)); }
static inline fp_block fp_either(fp_block a, fp_block b) { return vorrq_u8(a, b); }
static inline fp_block fp_minus(fp_block v, uint8_t c) { return vsubq_u8(v, fp_all(c)); }
static inline fp_mask fp_bits(fp_block v)
{
    return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(v), 4)), 0);
}
static inline fp_mask fp_not(fp_mask m) { return ~m; }
static inline unsigned fp_first(fp_mask m) { return (unsigned)__builtin_ctzll(m) / FP_MASK_STEP; }
#endif

static inline const uint8_t *fp_class_end(const uint8_t *p, const uint8_t *end, uint8_t class)
{
    while (p < end && (fp_class[*p] & class))
        p++;
    return p;
}

/* First byte that no field value may hold. */
static inline const uint8_t *fp_value_end(const uint8_t *p, const uint8_t *end, int portable)
{
#if FP_WIDE
    if (!portable) {
        while (end - p >= 16) {
            fp_block v = fp_get(p);
            fp_mask m = fp_bits(fp_either(fp_le(v, 0x1f), fp_eq(v, 0x7f)));
            if (m == 0) {
                p += 16;
                continue;
            }
            p += fp_first(m);
            if (*p != '\t')
                return p;
            p++;
        }
    }
#endif
    return fp_class_end(p, end, FP_IS_VALUE);
}

/* First byte that is not tchar. The wide form knows letters, digits and '-': all that common names have. */
static inline const uint8_t *fp_token_end(const uint8_t *p, const uint8_t *end, int portable)
{
#if FP_WIDE
    if (!portable) {
        while (end - p >= 16) {
            fp_block v = fp_get(p);
            fp_block letter = fp_le(fp_minus(fp_either(v, fp_all(32)), 'a'), 25);
            fp_block digit = fp_le(fp_minus(v, '0'), 9);
            fp_mask m = fp_not(fp_bits(fp_either(fp_either(letter, digit), fp_eq(v, '-'))));
            if (m == 0) {
                p += 16;
                continue;
            }
            p += fp_first(m);
            if (!(fp_class[*p] & FP_IS_TOKEN))
                return p;
            p++;
        }
    }
#endif
    return fp_class_end(p, end, FP_IS_TOKEN);
}

/* First byte that no target may hold, or `also` ('?' to stop at the query, '#' for no further stop). */
static inline const uint8_t *fp_target_end(const uint8_t *p, const uint8_t *end, uint8_t also, int portable)
{
#if FP_WIDE
    if (!portable) {
        while (end - p >= 16) {
            fp_block v = fp_get(p);
            fp_block edge = fp_either(fp_le(v, 0x20), fp_ge(v, 0x7f));
            fp_mask m = fp_bits(fp_either(edge, fp_either(fp_eq(v, '#'), fp_eq(v, also))));
            if (m)
                return p + fp_first(m);
            p += 16;
        }
    }
#endif
    while (p < end && (fp_class[*p] & FP_IS_TARGET) && *p != also)
        p++;
    return p;
}

/* First byte of a path that may need normalising: '%', '\', or a '/' or '.' that follows a '/'. `slash`: the
 * byte before `p` is one. */
static inline const uint8_t *fp_path_odd(const uint8_t *p, const uint8_t *end, int slash, int portable)
{
#if FP_WIDE
    if (!portable) {
        fp_mask carry = slash ? (((fp_mask)1 << FP_MASK_STEP) - 1) : 0;
        while (end - p >= 16) {
            fp_block v = fp_get(p);
            fp_mask s = fp_bits(fp_eq(v, '/'));
            fp_mask after = (s << FP_MASK_STEP) | carry;
            fp_mask m = fp_bits(fp_either(fp_eq(v, '%'), fp_eq(v, '\\')));
            m |= after & (s | fp_bits(fp_eq(v, '.')));
            if (m)
                return p + fp_first(m);
            carry = s >> (15 * FP_MASK_STEP);
            p += 16;
        }
        slash = carry != 0;
    }
#endif
    for (; p < end; p++) {
        if (*p == '%' || *p == '\\' || (slash && (*p == '/' || *p == '.')))
            return p;
        slash = *p == '/';
    }
    return p;
}

/* An IPv6 address as text, RFC 4291 2.2; no zone. */
static inline int fp_is_ipv6(const uint8_t *p, size_t n)
{
    char text[INET6_ADDRSTRLEN];
    struct in6_addr address;
    if (n == 0 || n >= sizeof text)
        return 0;
    memcpy(text, p, n);
    text[n] = 0;
    return inet_pton(AF_INET6, text, &address) == 1;
}

#endif
