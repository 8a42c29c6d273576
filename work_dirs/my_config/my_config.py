auto_scale_lr = dict(base_batch_size=16, enable=False)
backend_args = None
classes = dict(
    data_root="/tmp/pytest-of-root/pytest-6/datasets0/",
    metainfo=dict(
        classes=(
            "disc",
            "box",
            "triangle",
            "star",
        )
    ),
)
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        "gram_backbones.mmdet",
    ],
)
data_root = "/tmp/pytest-of-root/pytest-6/datasets0/"
dataset_type = "CocoDataset"
default_hooks = dict(
    checkpoint=dict(_scope_="mmdet", by_epoch=False, interval=2, type="CheckpointHook"),
    logger=dict(_scope_="mmdet", interval=1, type="LoggerHook"),
    param_scheduler=dict(_scope_="mmdet", type="ParamSchedulerHook"),
    sampler_seed=dict(_scope_="mmdet", type="DistSamplerSeedHook"),
    timer=dict(_scope_="mmdet", type="IterTimerHook"),
    visualization=dict(num=32, type="PicturesHook"),
)
default_scope = "mmdet"
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend="nccl"),
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
)
launcher = "none"
load_from = None
log_level = "INFO"
log_processor = dict(_scope_="mmdet", by_epoch=False, type="LogProcessor", window_size=50)
model = dict(
    _scope_="mmdet",
    backbone=dict(
        frozen_stages=1,
        init_cfg=dict(
            checkpoint="/tmp/pytest-of-root/pytest-6/test_the_tool_resumes_without_0/gone.pth",
            type="Pretrained",
        ),
        norm_cfg=dict(requires_grad=False, type="BN"),
        norm_eval=True,
        type="AOGNet",
        variant="aognet_4m",
    ),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_mask=True,
        pad_size_divisor=32,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type="DetDataPreprocessor",
    ),
    neck=dict(
        in_channels=[
            56,
            120,
            256,
            640,
        ],
        num_outs=5,
        out_channels=32,
        type="FPN",
    ),
    roi_head=dict(
        bbox_head=dict(
            bbox_coder=dict(
                target_means=[
                    0.0,
                    0.0,
                    0.0,
                    0.0,
                ],
                target_stds=[
                    0.1,
                    0.1,
                    0.2,
                    0.2,
                ],
                type="DeltaXYWHBBoxCoder",
            ),
            fc_out_channels=32,
            in_channels=32,
            loss_bbox=dict(loss_weight=1.0, type="L1Loss"),
            loss_cls=dict(loss_weight=1.0, type="CrossEntropyLoss", use_sigmoid=False),
            num_classes=4,
            reg_class_agnostic=False,
            roi_feat_size=7,
            type="Shared2FCBBoxHead",
        ),
        bbox_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            out_channels=32,
            roi_layer=dict(output_size=7, sampling_ratio=0, type="RoIAlign"),
            type="SingleRoIExtractor",
        ),
        mask_head=dict(
            conv_out_channels=16,
            in_channels=32,
            loss_mask=dict(loss_weight=1.0, type="CrossEntropyLoss", use_mask=True),
            num_classes=4,
            num_convs=1,
            type="FCNMaskHead",
        ),
        mask_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            out_channels=32,
            roi_layer=dict(output_size=14, sampling_ratio=0, type="RoIAlign"),
            type="SingleRoIExtractor",
        ),
        type="StandardRoIHead",
    ),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[
                0.5,
                1.0,
                2.0,
            ],
            scales=[
                8,
            ],
            strides=[
                4,
                8,
                16,
                32,
                64,
            ],
            type="AnchorGenerator",
        ),
        bbox_coder=dict(
            target_means=[
                0.0,
                0.0,
                0.0,
                0.0,
            ],
            target_stds=[
                1.0,
                1.0,
                1.0,
                1.0,
            ],
            type="DeltaXYWHBBoxCoder",
        ),
        feat_channels=32,
        in_channels=32,
        loss_bbox=dict(loss_weight=1.0, type="L1Loss"),
        loss_cls=dict(loss_weight=1.0, type="CrossEntropyLoss", use_sigmoid=True),
        type="RPNHead",
    ),
    test_cfg=dict(
        rcnn=dict(
            mask_thr_binary=0.5,
            max_per_img=100,
            nms=dict(iou_threshold=0.5, type="nms"),
            score_thr=0.05,
        ),
        rpn=dict(
            max_per_img=50, min_bbox_size=0, nms=dict(iou_threshold=0.7, type="nms"), nms_pre=1000
        ),
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.5,
                neg_iou_thr=0.5,
                pos_iou_thr=0.5,
                type="MaxIoUAssigner",
            ),
            debug=False,
            mask_size=28,
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=True,
                neg_pos_ub=-1,
                num=32,
                pos_fraction=0.25,
                type="RandomSampler",
            ),
        ),
        rpn=dict(
            allowed_border=-1,
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.3,
                neg_iou_thr=0.3,
                pos_iou_thr=0.7,
                type="MaxIoUAssigner",
            ),
            debug=False,
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=False,
                neg_pos_ub=-1,
                num=256,
                pos_fraction=0.5,
                type="RandomSampler",
            ),
        ),
        rpn_proposal=dict(
            max_per_img=50, min_bbox_size=0, nms=dict(iou_threshold=0.7, type="nms"), nms_pre=2000
        ),
    ),
    type="MaskRCNN",
)
optim_wrapper = dict(
    _scope_="mmdet",
    optimizer=dict(lr=0.02, momentum=0.9, type="SGD", weight_decay=0.0001),
    type="OptimWrapper",
)
param_scheduler = []
randomness = dict(seed=0)
resume = False
test_cfg = dict(_scope_="mmdet", type="TestLoop")
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        _scope_="mmdet",
        ann_file="annotations/instances_val2017.json",
        backend_args=None,
        data_prefix=dict(img="val2017/"),
        data_root="/tmp/pytest-of-root/pytest-6/datasets0/",
        metainfo=dict(
            classes=(
                "disc",
                "box",
                "triangle",
                "star",
            )
        ),
        pipeline=[
            dict(backend_args=None, type="LoadImageFromFile"),
            dict(
                keep_ratio=True,
                scale=(
                    1333,
                    800,
                ),
                type="Resize",
            ),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    "img_id",
                    "img_path",
                    "ori_shape",
                    "img_shape",
                    "scale_factor",
                ),
                type="PackDetInputs",
            ),
        ],
        test_mode=True,
        type="CocoDataset",
    ),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_="mmdet", shuffle=False, type="DefaultSampler"),
)
test_evaluator = dict(
    _scope_="mmdet",
    ann_file="/tmp/pytest-of-root/pytest-6/datasets0/annotations/instances_val2017.json",
    backend_args=None,
    format_only=False,
    metric=[
        "bbox",
        "segm",
    ],
    type="CocoMetric",
)
test_pipeline = [
    dict(_scope_="mmdet", backend_args=None, type="LoadImageFromFile"),
    dict(
        _scope_="mmdet",
        keep_ratio=True,
        scale=(
            1333,
            800,
        ),
        type="Resize",
    ),
    dict(_scope_="mmdet", type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        _scope_="mmdet",
        meta_keys=(
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
        ),
        type="PackDetInputs",
    ),
]
train_cfg = dict(max_iters=3, type="IterBasedTrainLoop", val_interval=100)
train_dataloader = dict(
    batch_sampler=dict(_scope_="mmdet", type="AspectRatioBatchSampler"),
    batch_size=2,
    dataset=dict(
        _scope_="mmdet",
        ann_file="annotations/instances_train2017.json",
        backend_args=None,
        data_prefix=dict(img="train2017/"),
        data_root="/tmp/pytest-of-root/pytest-6/datasets0/",
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        metainfo=dict(
            classes=(
                "disc",
                "box",
                "triangle",
                "star",
            )
        ),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                keep_ratio=True,
                scale=(
                    96,
                    96,
                ),
                type="Resize",
            ),
            dict(type="PackDetInputs"),
        ],
        type="CocoDataset",
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_="mmdet", shuffle=True, type="DefaultSampler"),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        keep_ratio=True,
        scale=(
            96,
            96,
        ),
        type="Resize",
    ),
    dict(type="PackDetInputs"),
]
val_cfg = dict(_scope_="mmdet", type="ValLoop")
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        _scope_="mmdet",
        ann_file="annotations/instances_val2017.json",
        backend_args=None,
        data_prefix=dict(img="val2017/"),
        data_root="/tmp/pytest-of-root/pytest-6/datasets0/",
        metainfo=dict(
            classes=(
                "disc",
                "box",
                "triangle",
                "star",
            )
        ),
        pipeline=[
            dict(backend_args=None, type="LoadImageFromFile"),
            dict(
                keep_ratio=True,
                scale=(
                    1333,
                    800,
                ),
                type="Resize",
            ),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    "img_id",
                    "img_path",
                    "ori_shape",
                    "img_shape",
                    "scale_factor",
                ),
                type="PackDetInputs",
            ),
        ],
        test_mode=True,
        type="CocoDataset",
    ),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_="mmdet", shuffle=False, type="DefaultSampler"),
)
val_evaluator = dict(
    _scope_="mmdet",
    ann_file="/tmp/pytest-of-root/pytest-6/datasets0/annotations/instances_val2017.json",
    backend_args=None,
    format_only=False,
    metric=[
        "bbox",
        "segm",
    ],
    type="CocoMetric",
)
vis_backends = [
    dict(_scope_="mmdet", type="LocalVisBackend"),
]
visualizer = dict(
    _scope_="mmdet",
    name="visualizer",
    type="DetLocalVisualizer",
    vis_backends=[
        dict(type="LocalVisBackend"),
    ],
)
work_dir = "work_dirs/my_config"
