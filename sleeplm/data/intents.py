"""Label names of public intent data sets."""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: CLINC150 (Larson et al. 2019): domain -> its 15 intents.
CLINC150_DOMAINS = {
    "banking": _names("""
        freeze_account routing pin_change bill_due pay_bill account_blocked interest_rate
        min_payment bill_balance transfer order_checks balance spending_history transactions
        report_fraud
    """),
    "credit_cards": _names("""
        replacement_card_duration expiration_date damaged_card improve_credit_score report_lost_card
        card_declined credit_limit_change apr redeem_rewards credit_limit rewards_balance
        application_status credit_score new_card international_fees
    """),
    "kitchen_and_dining": _names("""
        food_last confirm_reservation how_busy ingredients_list calories nutrition_info recipe
        restaurant_reviews restaurant_reservation meal_suggestion restaurant_suggestion
        cancel_reservation ingredient_substitution cook_time accept_reservations
    """),
    "home": _names("""
        what_song play_music todo_list_update reminder reminder_update calendar_update order_status
        update_playlist shopping_list calendar next_song order todo_list shopping_list_update
        smart_home
    """),
    "auto_and_commute": _names("""
        current_location oil_change_when oil_change_how uber traffic tire_pressure
        schedule_maintenance gas mpg distance directions last_maintenance gas_type tire_change
        jump_start
    """),
    "travel": _names("""
        plug_type travel_notification translate flight_status international_visa timezone
        exchange_rate travel_suggestion travel_alert vaccines lost_luggage book_flight book_hotel
        carry_on car_rental
    """),
    "utility": _names("""
        weather alarm date find_phone share_location timer make_call calculator definition
        measurement_conversion flip_coin spelling time roll_dice text
    """),
    "work": _names("""
        pto_request_status next_holiday insurance_change insurance meeting_schedule payday taxes
        income rollover_401k pto_balance pto_request w2 schedule_meeting direct_deposit pto_used
    """),
    "small_talk": _names("""
        who_made_you meaning_of_life who_do_you_work_for do_you_have_pets what_are_your_hobbies
        fun_fact what_is_your_name where_are_you_from goodbye thank_you greeting tell_joke
        are_you_a_bot how_old_are_you what_can_i_ask_you
    """),
    "meta": _names("""
        change_speed user_name whisper_mode yes change_volume no change_language repeat
        change_accent cancel sync_device change_user_name change_ai_name reset_settings maybe
    """),
}

#: Banking77 (Casanueva et al. 2020), in alphabetical order without regard to case: number i of
#: releases that have numbers for labels is the i-th name.
BANKING77 = _names("""
    activate_my_card age_limit apple_pay_or_google_pay atm_support automatic_top_up
    balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit
    beneficiary_not_allowed cancel_transfer card_about_to_expire card_acceptance card_arrival
    card_delivery_estimate card_linking card_not_working card_payment_fee_charged
    card_payment_not_recognised card_payment_wrong_exchange_rate card_swallowed
    cash_withdrawal_charge cash_withdrawal_not_recognised change_pin compromised_card
    contactless_not_working country_support declined_card_payment declined_cash_withdrawal
    declined_transfer direct_debit_payment_not_recognised disposable_card_limits
    edit_personal_details exchange_charge exchange_rate exchange_via_app extra_charge_on_statement
    failed_transfer fiat_currency_support get_disposable_virtual_card get_physical_card
    getting_spare_card getting_virtual_card lost_or_stolen_card lost_or_stolen_phone
    order_physical_card passcode_forgotten pending_card_payment pending_cash_withdrawal
    pending_top_up pending_transfer pin_blocked receiving_money Refund_not_showing_up
    request_refund reverted_card_payment? supported_cards_and_currencies terminate_account
    top_up_by_bank_transfer_charge top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed
    top_up_limits top_up_reverted topping_up_by_card transaction_charged_twice
    transfer_fee_charged transfer_into_account transfer_not_received_by_recipient transfer_timing
    unable_to_verify_identity verify_my_identity verify_source_of_funds verify_top_up
    virtual_card_not_working visa_or_mastercard why_verify_identity wrong_amount_of_cash_received
    wrong_exchange_rate_for_cash_withdrawal
""")
